//! **Purpose.** HTTP/1.1 as bytes: heads parsed in the received buffer, framing, chunks, paths, and heads written.
//!
//! **Shape.** [`RequestTable`] and [`ResponseTable`] hold offsets into bytes that the caller owns; [`RequestHead`] and
//! [`ResponseHead`] are the two together. [`ChunkDecoder`] walks a chunked body without copying it. [`edit`] writes the
//! head that goes on: received lines in runs, with our additions. These files do no I/O, read no clock and allocate only
//! to grow buffers that are kept.
//!
//! **Errors.** A [`Kind`](crate::fault::Kind); what a lax reader would guess at is refused, since two readers that guess
//! differently are how requests are smuggled.
//!
//! **Source.** RFC 9110, RFC 9112, RFC 3986.

pub mod chunk;
pub mod edit;
pub mod framing;
pub mod head;
#[cfg(test)]
mod head_tests;
pub(crate) mod line;
pub mod local;
pub mod path;
pub mod response;

pub use chunk::{ChunkDecoder, ChunkFault, Step, parse_trailers};
pub use edit::{Connection, RequestEdits, ResponseEdits, Trust, write_request_head, write_response_head};
pub use framing::BodyLength;
pub use head::{HeadLimits, Progress, RequestHead, RequestTable, Version};
pub use local::{LocalResponse, write_local_response};
pub use response::{ResponseHead, ResponseLimits, ResponseTable};
