//! Pieces of bodies.

use bytes::Bytes;
use outrigger_reactor::Buf;

/// A piece of a body as it was received, by HTTP/1 or by HTTP/2.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// Out of a frame.
    Framed(Bytes),
    /// Out of a socket.
    Received(Buf),
}

impl Chunk {
    /// Takes the first `at` bytes off the front and returns them. Panics when there are fewer.
    pub fn split_to(&mut self, at: usize) -> Self {
        match self {
            Self::Framed(bytes) => Self::Framed(bytes.split_to(at)),
            Self::Received(bytes) => Self::Received(bytes.split_to(at)),
        }
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// True when it has none.
    pub fn is_empty(&self) -> bool {
        self.as_ref().is_empty()
    }

    /// As the socket's queue takes it.
    pub fn into_buf(self) -> Buf {
        match self {
            Self::Framed(bytes) => Buf::from(bytes),
            Self::Received(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Framed(bytes) => bytes,
            Self::Received(bytes) => bytes,
        }
    }
}

impl bytes::Buf for Chunk {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.as_ref()
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Framed(bytes) => bytes.advance(count),
            Self::Received(bytes) => bytes.advance(count),
        }
    }
}
