//! The plain ways through.

use outrigger_reactor::{Buf, DriverKind, TcpStream, counters, spawn};

use super::{pair, recv_exact, run};

async fn echo(stream: TcpStream) {
    loop {
        let bytes = stream.recv().await.unwrap();
        if bytes.is_empty() {
            return;
        }
        stream.queue(bytes);
        stream.flush().await.unwrap();
    }
}

pub(crate) fn echoes(driver: DriverKind) {
    run(driver, async {
        let (client, server) = pair().await;
        let echoing = spawn(echo(server));
        for round in 0..100 {
            let message = format!("round {round}").into_bytes();
            client.queue(Buf::from(message.clone()));
            client.flush().await.unwrap();
            assert_eq!(recv_exact(&client, message.len()).await, message);
        }
        client.shutdown_write().unwrap();
        assert!(client.recv().await.unwrap().is_empty());
        echoing.await;
        assert!(counters().syscalls > 0);
    });
}
