//! **Purpose.** Proof that the pod's traffic is captured: a connection that only the rules can bring back to this process.
//!
//! **Shape.** Nobody listens on the heartbeat's port of loopback. The capture's rules bring a connection to it to the outbound
//! listener, which answers with the process's id; without rules it is refused at once. [`beat`] asks again and again, over
//! IPv4 and IPv6; a family that was proven once must stay so.
//! ```text
//!   unproven ──answered──▶ proven ──refused, or silent 3 times──▶ lost ──answered──▶ proven
//! ```
//!
//! **Limits.** One connection at a time, [`ANSWER_TIMEOUT`] for its answer.
//!
//! **Cancel.** Dropping the future ends it; the last verdict stays.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::glue::Health;
use crate::observe::CaptureView;

/// Time between heartbeats: until the first was answered, and after.
const FIRST_EVERY: Duration = Duration::from_millis(200);
const EVERY: Duration = Duration::from_secs(5);
/// While proof is lost: it is to be seen soon when it is back.
const LOST_EVERY: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Silent heartbeats in a row that mean loss: a machine under load answers late. A refusal means it at once.
const SILENT_MAX: u32 = 3;
/// The answer is one short line.
const ANSWER_BYTES: u64 = 64;

const REMEDY: &str = "the pod's traffic may pass this proxy by: run `outrigger-proxy intercept apply` in the pod's network \
                      namespace (it takes NET_ADMIN), or replace the pod";

/// What the heartbeats have shown.
#[derive(Debug, Default)]
pub(super) struct CaptureProof {
    families: [Family; 2],
    view: CaptureView,
}

#[derive(Debug, Default)]
struct Family {
    was_proven: bool,
    silent: u32,
    /// Why it is not proven now.
    fault: Option<String>,
}

/// Why a heartbeat was not answered.
#[derive(Debug)]
enum Unanswered {
    /// It is certain that no rule brought it here.
    Certain(String),
    /// It may be that nobody had time.
    Silent(String),
}

impl CaptureProof {
    /// What speaks against it; empty when it is proven.
    pub(super) fn reasons(&self) -> Vec<String> {
        let told = |family: &Family| family.fault.clone().unwrap_or_else(|| "no heartbeat was sent yet".to_owned());
        if self.families.iter().all(|family| !family.was_proven) {
            return vec![format!("{}; {REMEDY}", told(&self.families[0]))];
        }
        let lost = self.families.iter().filter(|family| family.was_proven && family.fault.is_some());
        lost.map(|family| format!("{}; {REMEDY}", told(family))).collect()
    }

    /// As the metrics tell it.
    pub(super) fn view(&self) -> CaptureView {
        CaptureView { is_proven: self.reasons().is_empty(), ..self.view }
    }

    fn note(&mut self, at: usize, destination: SocketAddr, answer: Result<(), Unanswered>) {
        let family = &mut self.families[at];
        let was_lost = family.fault.is_some();
        match answer {
            Ok(()) => {
                self.view.answered += 1;
                if !family.was_proven {
                    tracing::info!(%destination, "capture proven: a heartbeat came back through the rules");
                } else if was_lost {
                    tracing::info!(%destination, "capture proven again");
                }
                *family = Family { was_proven: true, silent: 0, fault: None };
            }
            Err(unanswered) => {
                // A family that the pod does not have is no loss.
                if at == 0 || family.was_proven {
                    self.view.lost += 1;
                }
                family.silent += 1;
                let (why, is_loss) = match unanswered {
                    Unanswered::Certain(why) => (why, true),
                    Unanswered::Silent(why) => (why, family.silent >= SILENT_MAX || !family.was_proven),
                };
                let fault =
                    format!("a connection to {destination} did not come back through the capture's rules: {why}");
                if is_loss && family.was_proven && !was_lost {
                    tracing::error!(%destination, "capture lost: {fault}; {REMEDY}");
                }
                if is_loss {
                    family.fault = Some(fault);
                }
            }
        }
    }
}

/// Sends heartbeats for ever.
pub(super) async fn beat(port: u16, health: Arc<Mutex<Health>>) {
    let destinations =
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| SocketAddr::new(ip, port));
    loop {
        for (at, destination) in destinations.into_iter().enumerate() {
            let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask(destination)).await;
            let answer = asked.unwrap_or_else(|_| Err(Unanswered::Silent(format!("no answer in {ANSWER_TIMEOUT:?}"))));
            let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
            health.capture.get_or_insert_default().note(at, destination, answer);
        }
        let pause = {
            let health = health.lock().unwrap_or_else(PoisonError::into_inner);
            match &health.capture {
                Some(proof) if proof.reasons().is_empty() => EVERY,
                Some(proof) if proof.families.iter().any(|family| family.was_proven) => LOST_EVERY,
                _ => FIRST_EVERY,
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Connects, and reads who answers.
async fn ask(destination: SocketAddr) -> Result<(), Unanswered> {
    let stream = TcpStream::connect(destination).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Unanswered::Certain("refused, as without rules".to_owned()),
        _ => Unanswered::Silent(error.to_string()),
    })?;
    let mut answer = String::new();
    // What is read before an error counts.
    let read = stream.take(ANSWER_BYTES).read_to_string(&mut answer).await;
    let expected = format!("outrigger-heartbeat {}\n", std::process::id());
    match read {
        _ if answer == expected => Ok(()),
        Ok(_) if answer.is_empty() => Err(Unanswered::Silent("closed without an answer".to_owned())),
        Ok(_) => Err(Unanswered::Certain(format!("answered by somebody else: {answer:?}"))),
        Err(error) => Err(Unanswered::Silent(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_family_is_enough_and_what_was_proven_must_stay_so() {
        let mut proof = CaptureProof::default();
        let (v4, v6) = (at("127.0.0.1:15009"), at("[::1]:15009"));
        let refused = || Err(Unanswered::Certain("refused".to_owned()));
        let silent = || Err(Unanswered::Silent("late".to_owned()));
        assert!(proof.reasons()[0].contains("no heartbeat was sent yet"));
        proof.note(0, v4, refused());
        proof.note(1, v6, refused());
        let told = proof.reasons();
        assert!(
            told.len() == 1 && told[0].contains("127.0.0.1:15009") && told[0].contains("intercept apply"),
            "{told:?}"
        );
        proof.note(0, v4, Ok(()));
        assert!(proof.reasons().is_empty(), "there is no IPv6 here");
        for _ in 1..SILENT_MAX {
            proof.note(0, v4, silent());
            assert!(proof.reasons().is_empty(), "late is not lost");
        }
        proof.note(0, v4, silent());
        assert_eq!(proof.reasons().len(), 1);
        proof.note(0, v4, Ok(()));
        proof.note(1, v6, Ok(()));
        assert!(proof.reasons().is_empty());
        proof.note(1, v6, refused());
        assert!(proof.reasons()[0].contains("[::1]:15009"), "a refusal is certain at once");
        let view = proof.view();
        assert_eq!((view.is_proven, view.answered, view.lost), (false, 3, 5));
    }
}
