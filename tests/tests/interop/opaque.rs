//! Databases and caches through opaque listeners: the server speaks first (MariaDB), or the client pipelines (Redis,
//! Memcached).

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource::{self, cluster, opaque_listener};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::{Downstream, Io, Proxy, ProxySetup, wait_for};
use serde_json::json;

use super::{BOTH, free_port, run, wait_accepts};

const ROWS: usize = 1_000;

fn opaque(io: Io, address: SocketAddr) -> Proxy {
    let listener = opaque_listener("main", json!({ "cluster": "app" }));
    Proxy::start(&ProxySetup::new(io, resource::bootstrap(vec![listener], vec![cluster("app", &[address])])))
}

/// A server that listens on a port of ours with its files in a folder of ours.
fn start(program: &str, arguments: &[&str], address: SocketAddr) -> Process {
    let launch = Launch { program: program.into(), ..Launch::default() }.args(arguments);
    let process = Process::start(program, &launch);
    let mut process = process.unwrap_or_else(|error| panic!("{program}: {error}; `make interop` installs it"));
    wait_accepts(address, &mut process);
    process
}

fn mariadb(scratch: &Scratch) -> (Process, SocketAddr) {
    let address = free_port();
    let folder = scratch.path().display().to_string();
    let (files, socket) = (format!("{folder}/files"), format!("{folder}/socket"));
    let files_are = format!("--datadir={files}");
    run(
        "mariadb-install-db",
        &["--no-defaults", &files_are, "--auth-root-authentication-method=normal", "--user=root", "--skip-test-db"],
    );
    let port = format!("--port={}", address.port());
    let (socket, pid) = (format!("--socket={socket}"), format!("--pid-file={folder}/pid"));
    let process = start(
        "/usr/sbin/mariadbd",
        &["--no-defaults", "--user=root", &files_are, "--bind-address=127.0.0.1", &port, &socket, &pid],
        address,
    );
    (process, address)
}

/// Runs SQL over TCP and gives what it prints.
fn sql(port: u16, text: &str) -> String {
    let port = port.to_string();
    let fixed =
        ["--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--user=root", "--batch", "--skip-column-names"];
    let output = Command::new("mariadb")
        .args(fixed)
        .args(["--port", &port, "--execute", text])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("mariadb: {error}; `make interop` installs it"));
    assert!(output.status.success(), "{text:.80}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs mariadb: make interop"]
fn mariadb_speaks_first_and_keeps_a_thousand_rows() {
    let scratch = Scratch::new("mariadb").unwrap();
    let (_mariadb, address) = mariadb(&scratch);
    for io in BOTH {
        let proxy = opaque(io, address);
        let port = proxy.listener("main").port();
        let rows: Vec<String> = (0..ROWS).map(|number| format!("({number}, 'order {number}')")).collect();
        sql(
            port,
            "DROP DATABASE IF EXISTS shop; CREATE DATABASE shop; CREATE TABLE shop.orders (id INT PRIMARY KEY, text VARCHAR(40))",
        );
        sql(port, &format!("INSERT INTO shop.orders VALUES {}", rows.join(", ")));
        assert_eq!(
            sql(port, "SELECT COUNT(*), SUM(id), MAX(text) FROM shop.orders").trim(),
            "1000\t499500\torder 999",
            "{io:?}"
        );
        let read = sql(port, "SELECT text FROM shop.orders ORDER BY id");
        assert!(
            read.lines().enumerate().all(|(number, line)| line == format!("order {number}")),
            "{io:?}: {read:.200}"
        );
        assert_eq!(read.lines().count(), ROWS, "{io:?}");
        let large = sql(port, "SELECT REPEAT('x', 1000000)");
        assert_eq!(large.trim().len(), 1_000_000, "{io:?}");
    }
}

#[test]
#[ignore = "needs redis: make interop"]
fn redis_answers_a_pipeline() {
    let scratch = Scratch::new("redis").unwrap();
    let address = free_port();
    let (folder, port) = (scratch.path().display().to_string(), address.port().to_string());
    let _redis = start(
        "redis-server",
        &["--port", &port, "--bind", "127.0.0.1", "--dir", &folder, "--save", "", "--appendonly", "no"],
        address,
    );
    for io in BOTH {
        let proxy = opaque(io, address);
        let port = proxy.listener("main").port().to_string();
        let ask = |arguments: &[&str]| {
            String::from_utf8(run("redis-cli", &[&["-h", "127.0.0.1", "-p", &port], arguments].concat()).stdout)
                .unwrap()
        };
        assert_eq!(ask(&["SET", "order", "42"]).trim(), "OK", "{io:?}");
        assert_eq!(ask(&["GET", "order"]).trim(), "42", "{io:?}");
        let mut client = proxy.connect();
        let pipeline: String =
            (0..10_000).map(|number| format!("SET key:{number} {number}\r\nGET key:{number}\r\n")).collect();
        let wanted: String =
            (0..10_000).map(|number| format!("+OK\r\n${}\r\n{number}\r\n", number.to_string().len())).collect();
        std::thread::scope(|scope| {
            // Redis answers while it reads: a pipeline of this length is read at the same time.
            let reader = scope.spawn({
                let mut client = client.try_clone().unwrap();
                let count = wanted.len();
                move || client.read_bytes(count).unwrap()
            });
            client.send(pipeline.as_bytes()).unwrap();
            assert!(reader.join().unwrap() == wanted.as_bytes(), "{io:?}: an answer differs");
        });
        let load = run(
            "redis-benchmark",
            &["-h", "127.0.0.1", "-p", &port, "-q", "-n", "20000", "-c", "20", "-P", "16", "-t", "set,get"],
        );
        let told = String::from_utf8_lossy(&load.stdout).into_owned();
        assert!(told.contains("SET: ") && told.contains("GET: "), "{io:?}: {told}");
    }
}

#[test]
#[ignore = "needs memcached: make interop"]
fn memcached_stores_and_gives_back() {
    let address = free_port();
    let port = address.port().to_string();
    let _memcached =
        start("memcached", &["-l", "127.0.0.1", "-p", &port, "-U", "0", "-u", "root", "-m", "64"], address);
    for io in BOTH {
        let proxy = opaque(io, address);
        let mut client: Downstream = proxy.connect();
        for size in [0, 1, 1_000, 100_000, 1_000_000] {
            let value = outrigger_tests::world::upstream::pattern(0, size);
            client.send(format!("set order:{size} 0 0 {size}\r\n").as_bytes()).unwrap();
            client.send(&[&value[..], b"\r\n"].concat()).unwrap();
            assert_eq!(client.read_bytes(8).unwrap(), b"STORED\r\n", "{io:?}: {size}");
            client.send(format!("get order:{size}\r\n").as_bytes()).unwrap();
            let wanted = [format!("VALUE order:{size} 0 {size}\r\n").as_bytes(), &value, b"\r\nEND\r\n"].concat();
            assert!(client.read_bytes(wanted.len()).unwrap() == wanted, "{io:?}: {size} bytes came back changed");
        }
        client.send(b"quit\r\n").unwrap();
        client.expect_closed(Duration::from_secs(5)).unwrap();
        drop(client);
        wait_for("the connection's end", Duration::from_secs(5), || {
            let open = proxy.metric("outrigger_listener_connections", &[]);
            if open < 1.0 { Ok(()) } else { Err(format!("{open} open")) }
        });
    }
}
