//! Opening a connection within its time.

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_reactor::{Elapsed, TcpStream, now, timeout, timeout_at};

use super::{Connection, Endpoint, Multiplexed, Slot};
use crate::config::Http2Config;
use crate::stats::ClusterCell;

/// Why no connection came to be. In every case no byte of a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFault {
    /// Nobody listens there.
    Refused,
    /// The connect timeout ran out.
    Timeout,
    /// The network or this machine would not have it: no route, no descriptors, no ports.
    Unreachable,
}

/// Connects to `endpoint` within `limit`. `slot` is held as long as the connection lives.
/// Cancel: the attempt is given up and its socket closed.
pub async fn connect(
    endpoint: &Rc<Endpoint>,
    slot: Slot,
    cell: Arc<ClusterCell>,
    limit: Duration,
) -> Result<Connection, ConnectFault> {
    let stream = open(endpoint, &cell, limit).await?;
    Ok(Connection::new(endpoint.clone(), stream, slot, cell))
}

/// As [`connect`], for a connection of HTTP/2.
pub async fn connect_multiplexed(
    endpoint: &Rc<Endpoint>,
    slot: Slot,
    cell: Arc<ClusterCell>,
    (limit, config): (Duration, &Http2Config),
    seed: u64,
) -> Result<Rc<Multiplexed>, ConnectFault> {
    let due = now() + limit;
    let stream = open(endpoint, &cell, limit).await?;
    let cells = (endpoint.cell.clone(), cell.clone());
    match timeout_at(due, Multiplexed::open(stream, config, slot, cells, seed)).await {
        Ok(Ok(multiplexed)) => Ok(multiplexed),
        Ok(Err(_)) => Err(failed(endpoint, &cell, ConnectFault::Unreachable)),
        Err(Elapsed) => Err(failed(endpoint, &cell, ConnectFault::Timeout)),
    }
}

async fn open(endpoint: &Endpoint, cell: &ClusterCell, limit: Duration) -> Result<TcpStream, ConnectFault> {
    cell.connects.add_one();
    let fault = match timeout(limit, TcpStream::connect(endpoint.address)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => ConnectFault::Refused,
        Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => ConnectFault::Timeout,
        Ok(Err(_)) => ConnectFault::Unreachable,
        Err(Elapsed) => ConnectFault::Timeout,
    };
    Err(failed(endpoint, cell, fault))
}

fn failed(endpoint: &Endpoint, cell: &ClusterCell, fault: ConnectFault) -> ConnectFault {
    cell.connect_failures.add_one();
    endpoint.cell.connect_failures.fetch_add(1, Ordering::Relaxed);
    fault
}
