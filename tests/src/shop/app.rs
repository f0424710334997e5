//! Purpose: the shop's applications: small HTTP servers that know nothing of the mesh and call each other by name,
//! through whatever outbound address they were given.
//!
//! Shape:
//! ```text
//! POST /buy ▶ gateway ─▶ orders ─┬▶ stock    POST /reserve
//!                                └▶ payment  POST /charge   (the ledger: one charge per Idempotency-Key)
//! ```
//! `PUT /outbound` tells an application where its sidecar is; `GET /ledger` reads payment's books.
//!
//! Limits: one thread per connection; a connection that its sidecar closed is opened again once.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;

use anyhow::Context;
use clap::ValueEnum;
use outrigger_tests::world::message::{self, BodyLength};
use outrigger_tests::world::{Downstream, Response};
use serde_json::{Value, json};

use crate::AppArgs;

const KEY: &str = "idempotency-key";

/// What an application does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Takes orders from outside.
    Gateway,
    /// Places orders.
    Orders,
    /// Takes the money.
    Payment,
    /// Keeps the goods.
    Stock,
}

#[derive(Debug)]
struct App {
    role: Role,
    name: String,
    release: String,
    outbound: RwLock<Option<SocketAddr>>,
    served: AtomicU64,
    ledger: Mutex<HashMap<String, Entry>>,
    anonymous: AtomicU64,
}

/// What was charged under one key.
#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    charges: u64,
    repeats: u64,
}

/// A request, as far as the shop cares.
struct Call<'a> {
    method: &'a str,
    target: &'a str,
    key: Option<String>,
    body: &'a [u8],
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Value,
}

impl Answer {
    fn new(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body }
    }
}

/// Serves until the process is killed.
pub(crate) fn run(args: &AppArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let app = Arc::new(App {
        role: args.role,
        name: args.name.clone(),
        release: args.release.clone(),
        outbound: RwLock::default(),
        served: AtomicU64::new(0),
        ledger: Mutex::default(),
        anonymous: AtomicU64::new(0),
    });
    println!("outrigger-shop app ready name={} listen={}", args.name, listener.local_addr()?);
    for stream in listener.incoming() {
        let (app, stream) = (app.clone(), stream?);
        thread::spawn(move || {
            // The other side's end of the connection; nothing is left to be done.
            let _ = serve(&app, &stream);
        });
    }
    Ok(())
}

fn serve(app: &App, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut sidecar = None;
    while let Some(head) = message::read_head(&mut reader)? {
        let (method, target, headers) = message::parse_request(&head)?;
        let length = message::body_length(&headers)?.unwrap_or(BodyLength::Known(0));
        let (body, _) = message::read_body(&mut reader, length, &mut Vec::new())?;
        let call = Call { method: &method, target: &target, key: headers.first(KEY), body: &body };
        let answer = app.answer(call, &mut sidecar);
        let body = answer.body.to_string();
        let mut bytes = format!("HTTP/1.1 {} Shop\r\ncontent-type: application/json\r\n", answer.status);
        for (name, value) in &answer.headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        (&*stream).write_all(bytes.as_bytes())?;
    }
    Ok(())
}

impl App {
    fn answer(&self, call: Call<'_>, sidecar: &mut Option<Downstream>) -> Answer {
        let Call { method, target, key, body } = call;
        match (self.role, method, target) {
            (_, "PUT", "/outbound") => self.learn_outbound(body),
            (_, "GET", "/health") => Answer::new(200, json!({ "name": self.name })),
            (Role::Gateway, "POST", "/buy") => self.buy(key.as_deref(), body, sidecar),
            (Role::Orders, "POST", "/orders") => self.place(key.as_deref(), body, sidecar),
            (Role::Stock, "POST", "/reserve") => {
                self.served.fetch_add(1, Ordering::Relaxed);
                Answer::new(200, json!({ "reserved": true }))
            }
            (Role::Payment, "POST", "/charge") => self.charge(key),
            (Role::Payment, "GET", "/ledger") => self.books(),
            _ => Answer::new(404, json!({ "error": format!("{} knows no {method} {target}", self.name) })),
        }
    }

    fn learn_outbound(&self, body: &[u8]) -> Answer {
        match std::str::from_utf8(body).ok().and_then(|text| text.trim().parse().ok()) {
            Some(address) => {
                *self.outbound.write().unwrap_or_else(PoisonError::into_inner) = Some(address);
                Answer::new(200, json!({ "outbound": address.to_string() }))
            }
            None => Answer::new(400, json!({ "error": "the body must be an address such as 127.0.0.1:15001" })),
        }
    }

    /// Hands an order on; a refusal goes back as it came, with the mesh's word on why.
    fn buy(&self, key: Option<&str>, body: &[u8], sidecar: &mut Option<Downstream>) -> Answer {
        match self.call(sidecar, ("orders", "/orders"), key, body) {
            Err(error) => Answer::new(502, json!({ "error": format!("orders: {error}") })),
            Ok(response) => {
                let mut answer = Answer::new(response.status, own_json(&response));
                for name in ["outrigger-fault", "x-replica", "x-release"] {
                    answer.headers.extend(response.header(name).map(|value| (name, value)));
                }
                answer
            }
        }
    }

    fn place(&self, key: Option<&str>, body: &[u8], sidecar: &mut Option<Downstream>) -> Answer {
        for (service, target) in [("stock", "/reserve"), ("payment", "/charge")] {
            match self.call(sidecar, (service, target), key, body) {
                Ok(response) if response.status == 200 => {}
                Ok(response) => {
                    let error = format!("{service} answered {}", response.status);
                    return Answer::new(503, json!({ "error": error, "detail": own_json(&response) }));
                }
                Err(error) => return Answer::new(503, json!({ "error": format!("{service}: {error}") })),
            }
        }
        self.served.fetch_add(1, Ordering::Relaxed);
        Answer {
            status: 201,
            headers: vec![("x-replica", self.name.clone()), ("x-release", self.release.clone())],
            body: json!({ "order": key, "placed_by": self.name }),
        }
    }

    /// Charges once per key; a repeat is answered from the ledger.
    fn charge(&self, key: Option<String>) -> Answer {
        let Some(key) = key else {
            self.anonymous.fetch_add(1, Ordering::Relaxed);
            return Answer::new(200, json!({ "charged": true }));
        };
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = ledger.entry(key).or_default();
        if entry.charges == 0 {
            entry.charges = 1;
        } else {
            entry.repeats += 1;
        }
        Answer::new(200, json!({ "charged": true, "repeat": entry.repeats > 0 }))
    }

    fn books(&self) -> Answer {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |part: fn(&Entry) -> u64| ledger.values().map(part).sum::<u64>();
        Answer::new(
            200,
            json!({
                "keys": ledger.len(), "charges": sum(|entry| entry.charges), "repeats": sum(|entry| entry.repeats),
                "without_key": self.anonymous.load(Ordering::Relaxed),
            }),
        )
    }

    /// Calls a service by name through the sidecar; a kept connection that turns out closed is opened again once.
    fn call(
        &self,
        sidecar: &mut Option<Downstream>,
        (service, target): (&str, &str),
        key: Option<&str>,
        body: &[u8],
    ) -> io::Result<Response> {
        let outbound = *self.outbound.read().unwrap_or_else(PoisonError::into_inner);
        let outbound = outbound.ok_or_else(|| io::Error::other("no outbound address yet: PUT /outbound"))?;
        let mut headers = vec![("host", service)];
        headers.extend(key.map(|key| (KEY, key)));
        if let Some(mut kept) = sidecar.take()
            && let Ok(response) = kept.request("POST", target, &headers, body)
        {
            *sidecar = Some(kept).filter(|_| !response.says_close());
            return Ok(response);
        }
        let mut fresh = Downstream::connect(outbound)?;
        let response = fresh.request("POST", target, &headers, body)?;
        *sidecar = Some(fresh).filter(|_| !response.says_close());
        Ok(response)
    }
}

fn own_json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|_| Value::String(response.text()))
}
