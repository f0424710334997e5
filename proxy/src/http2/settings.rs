//! `h2`'s builders, as configured.

use h2::{client, server};

use crate::config::Http2Config;

/// Largest frame that is taken, RFC 9113's smallest bound: larger ones only make others wait.
const FRAME_BYTES: u32 = 16 * 1024;
/// Streams that a client may open and reset before they are looked at.
const EARLY_RESETS: usize = 200;
/// Streams that this side had to reset for what the peer did wrong on them, over the life of a connection.
const FORCED_RESETS: usize = 500;
/// Bytes of one stream's body that wait in `h2` to be sent, beyond what its window takes.
const SEND_BYTES: usize = 64 * 1024;
/// Largest window. Source: RFC 9113 §6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// How clients' connections are served. `head_bytes` bounds a header list.
pub fn server(config: &Http2Config, head_bytes: usize) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(connection_window(config))
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(EARLY_RESETS)
        .max_local_error_reset_streams(Some(FORCED_RESETS))
        .max_send_buffer_size(SEND_BYTES);
    if config.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// How endpoints are spoken to. `head_bytes` bounds a header list.
pub fn client(config: &Http2Config, head_bytes: usize) -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(usize::try_from(config.max_concurrent_streams).unwrap_or(usize::MAX))
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(connection_window(config))
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .max_local_error_reset_streams(Some(FORCED_RESETS))
        .max_send_buffer_size(SEND_BYTES);
    builder
}

/// Unless it is set, no number of stalled streams can fill it.
fn connection_window(config: &Http2Config) -> u32 {
    config.connection_window.unwrap_or_else(|| {
        let all = u64::from(config.stream_window) * u64::from(config.max_concurrent_streams);
        u32::try_from(all).unwrap_or(WINDOW_MAX).clamp(65_535, WINDOW_MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_a_connection_holds_those_of_all_its_streams() {
        let config = Http2Config::default();
        assert_eq!(connection_window(&config), 64 * 1024 * 1024);
        assert_eq!(connection_window(&Http2Config { stream_window: WINDOW_MAX, ..config }), WINDOW_MAX);
        assert_eq!(connection_window(&Http2Config { max_concurrent_streams: 1, ..config }), 65_536);
        assert_eq!(connection_window(&Http2Config { connection_window: Some(70_000), ..config }), 70_000);
    }
}
