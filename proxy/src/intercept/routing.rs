//! The route by which TPROXY's packets, and answers to kept sources, stay in the pod: marked packets look into a table of
//! our own, where every address is local.
//!
//! **Shape.** What `ip rule add fwmark 1337 lookup 1337` and `ip route add local default dev lo table 1337` do, for
//! either family, by four messages of the kernel's routing socket. They are written here: the crates for it bring an
//! asynchronous runtime's worth of code for these bytes, and the program `ip` would be one more in the image.
//!
//! **Source.** rtnetlink(7), linux/fib_rules.h.

use std::io::{self, Read as _};

use socket2::{Domain, Protocol, Socket, Type};

use crate::rules::{Family, MARK};

const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
/// Every network namespace numbers its loopback interface so.
const LOOPBACK: u32 = 1;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const RTA_OIF: u16 = 4;
/// The same number for rules and for routes.
const TABLE: u16 = 15;
const TO_TABLE: u8 = 1;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_HOST: u8 = 254;
const TYPE_LOCAL: u8 = 2;

const HEADER: usize = 16;
/// Length of both fib_rule_hdr and rtmsg.
const BODY: usize = 12;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;

/// Makes rule and route; nothing changes where they are already.
pub(super) fn add(family: Family) -> io::Result<()> {
    let socket = open()?;
    ask(&socket, &route(family, RTM_NEWROUTE, REQUEST | ACK | CREATE | REPLACE), &[])?;
    ask(&socket, &rule(family, RTM_NEWRULE, REQUEST | ACK | CREATE | EXCLUSIVE), &[EEXIST])
}

/// Deletes rule and route where they are.
pub(super) fn remove(family: Family) -> io::Result<()> {
    let socket = open()?;
    let gone = [ENOENT, ESRCH, EAFNOSUPPORT, EOPNOTSUPP];
    ask(&socket, &rule(family, RTM_DELRULE, REQUEST | ACK), &gone)?;
    ask(&socket, &route(family, RTM_DELROUTE, REQUEST | ACK), &gone)
}

/// Which of the two are there: rule, route.
pub(super) fn present(family: Family) -> io::Result<(bool, bool)> {
    let socket = open()?;
    let is_rule =
        |message: &[u8]| attribute(message, FRA_FWMARK) == Some(MARK) && attribute(message, TABLE) == Some(MARK);
    let is_route = |message: &[u8]| {
        message.get(HEADER + 7) == Some(&TYPE_LOCAL)
            && attribute(message, RTA_OIF) == Some(LOOPBACK)
            && attribute(message, TABLE) == Some(MARK)
    };
    let rules = dump(&socket, &message(RTM_GETRULE, REQUEST | DUMP, body(family), &[]))?;
    let routes = dump(&socket, &message(RTM_GETROUTE, REQUEST | DUMP, body(family), &[]))?;
    Ok((rules.iter().any(|rule| is_rule(rule)), routes.iter().any(|route| is_route(route))))
}

fn open() -> io::Result<Socket> {
    Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_ROUTE)))
}

fn body(family: Family) -> [u8; BODY] {
    let mut body = [0; BODY];
    body[0] = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    body
}

fn rule(family: Family, kind: u16, flags: u16) -> Vec<u8> {
    let mut body = body(family);
    body[7] = TO_TABLE;
    message(kind, flags, body, &[(FRA_PRIORITY, MARK), (FRA_FWMARK, MARK), (TABLE, MARK)])
}

fn route(family: Family, kind: u16, flags: u16) -> Vec<u8> {
    let mut body = body(family);
    body[5] = PROTOCOL_STATIC;
    body[6] = SCOPE_HOST;
    body[7] = TYPE_LOCAL;
    message(kind, flags, body, &[(RTA_OIF, LOOPBACK), (TABLE, MARK)])
}

fn message(kind: u16, flags: u16, body: [u8; BODY], attributes: &[(u16, u32)]) -> Vec<u8> {
    let length = HEADER + BODY + attributes.len() * 8;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port id: one question at a time needs neither.
    bytes.extend([0; 8]);
    bytes.extend(body);
    for (kind, value) in attributes {
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

/// Sends one message and waits for the kernel's word on it; error numbers in `fine` are none.
fn ask(socket: &Socket, message: &[u8], fine: &[i32]) -> io::Result<()> {
    for answer in exchange(socket, message)? {
        let number = error_number(&answer).unwrap_or(0);
        if number != 0 && !fine.contains(&number) {
            return Err(io::Error::from_raw_os_error(number));
        }
    }
    Ok(())
}

fn dump(socket: &Socket, message: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let answers = exchange(socket, message)?;
    match answers.iter().find_map(|answer| error_number(answer)) {
        // A kernel without that family has none of it.
        Some(0 | EAFNOSUPPORT | EOPNOTSUPP) | None => Ok(answers),
        Some(number) => Err(io::Error::from_raw_os_error(number)),
    }
}

/// The answers up to the kernel's last word, that one with them.
fn exchange(mut socket: &Socket, message: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    socket.send(message)?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 32 << 10];
    loop {
        let length = socket.read(&mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(size) = number(rest, 0).and_then(|size| usize::try_from(size).ok()) {
            let Some(answer) = rest.get(..size).filter(|answer| answer.len() >= HEADER) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off"));
            };
            answers.push(answer.to_vec());
            if matches!(kind_of(answer), Some(NLMSG_DONE | NLMSG_ERROR)) {
                return Ok(answers);
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes)
}

fn kind_of(message: &[u8]) -> Option<u16> {
    short(message, 4)
}

/// Of an error message: 0 when it is a confirmation.
fn error_number(message: &[u8]) -> Option<i32> {
    if kind_of(message) != Some(NLMSG_ERROR) {
        return None;
    }
    number(message, HEADER).map(|number| number.cast_signed().wrapping_neg())
}

/// A number among the attributes of a rule or route.
fn attribute(message: &[u8], wanted: u16) -> Option<u32> {
    let mut at = HEADER + BODY;
    while let (Some(length), Some(kind)) = (short(message, at), short(message, at + 2)) {
        if kind == wanted {
            return number(message, at + 4);
        }
        at += usize::from(length.max(4)).next_multiple_of(4);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let bytes = rule(Family::V6, RTM_NEWRULE, REQUEST | ACK);
        assert_eq!(bytes.len(), 52);
        assert_eq!(number(&bytes, 0), Some(52));
        assert_eq!((kind_of(&bytes), short(&bytes, 6)), (Some(32), Some(5)));
        assert_eq!((bytes[16], bytes[23]), (10, 1));
        assert_eq!((attribute(&bytes, FRA_FWMARK), attribute(&bytes, TABLE)), (Some(1337), Some(1337)));
        assert_eq!(attribute(&bytes, 99), None);
        let bytes = route(Family::V4, RTM_NEWROUTE, REQUEST);
        assert_eq!((bytes[16], bytes[22], bytes[23]), (2, 254, 2));
        assert_eq!(attribute(&bytes, RTA_OIF), Some(1));
    }

    #[test]
    fn an_answer_cut_off_is_no_answer() {
        assert_eq!(error_number(&[0; 10]), None);
        assert_eq!(attribute(&[0; HEADER + BODY + 3], 1), None);
        // An attribute of length 0 must not hold the walk up.
        assert_eq!(attribute(&[0; HEADER + BODY + 64], 7), None);
    }

    #[test]
    fn what_is_there_can_be_asked_by_anybody() {
        for family in Family::ALL {
            present(family).unwrap();
        }
    }
}
