//! One suite, run on both drivers. A machine without io_uring fails the `uring` half: it is never skipped.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario fails by panicking")]

mod suite;

use outrigger_reactor::{Allocator, DriverKind};

/// As the programs have it: the suite runs on kept blocks too.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

macro_rules! on_both {
    ($($name:ident in $room:ident),* $(,)?) => {
        mod uring {
            use super::{DriverKind, suite};
            $(#[test] fn $name() { suite::$room::$name(DriverKind::Uring); })*
        }
        mod epoll {
            use super::{DriverKind, suite};
            $(#[test] fn $name() { suite::$room::$name(DriverKind::Epoll); })*
        }
    };
}

on_both! {
    echoes in basic,
    many_connections_at_once in basic,
    gathers_more_slices_than_the_kernel_takes in basic,
    moves_much_both_ways in basic,
    relays_the_received_slice in basic,
    half_close_leaves_the_other_way_open in basic,
    fin_follows_what_is_queued in basic,
    a_reset_is_an_error_on_both_sides in basic,
    a_reset_ends_a_blocked_flush in basic,
    a_refused_connect_says_so in basic,
    ipv6_works in basic,
    readable_reports_bytes_fin_and_reset in basic,
    unread_bytes_come_first in basic,
    takes_std_sockets_over in basic,
    queued_bytes_are_read_without_a_system_call in basic,
    what_is_handed_over_leaves_by_itself in basic,
    a_failed_hand_over_shows_in_the_next_call in basic,
    a_relayed_message_costs_few_system_calls in basic,
    dropped_receives_and_flushes_lose_no_byte in cancel,
    dropped_accepts_lose_no_connection in cancel,
    dropped_connects_close_their_sockets in cancel,
    streams_dropped_in_flight_cross_no_bytes in cancel,
    a_stream_dropped_while_its_send_is_blocked_is_closed in cancel,
    a_dropped_flush_finishes_what_is_in_flight in cancel,
    a_closed_stream_sends_its_fin_at_once in cancel,
    a_closed_listener_hands_its_backlog_over in cancel,
    an_accepted_connection_is_served_by_another_runtime in handover,
    an_accepted_connection_that_nobody_opens_is_closed in handover,
    accepts_of_both_sorts_share_one_line in handover,
    a_mailbox_closed_under_storm_loses_no_value in handover,
    a_slow_reader_bounds_what_is_received in limits,
    small_messages_do_not_pile_up in limits,
    an_idle_connection_holds_no_block in limits,
    more_streams_than_blocks_still_get_on in limits,
    a_held_pool_parks_streams_until_a_block_returns in limits,
    load_borrows_blocks_and_gives_them_back in limits,
    out_of_descriptors_is_an_error_and_passes in limits,
    a_spinning_task_does_not_starve_io in limits,
    a_fast_sender_does_not_starve_the_rest in limits,
    a_small_submission_queue_is_enough in limits,
    connections_beyond_the_completion_queue_get_on in limits,
    splices_without_receiving in splice,
    splices_between_receives in splice,
    what_follows_a_splice_is_received_as_a_head in splice,
    a_splice_into_a_slow_sink_waits in splice,
    a_splice_tells_its_ends_apart in splice,
    a_dropped_splice_crosses_no_bytes in splice,
    a_task_gives_its_output in tasks,
    dropping_a_task_aborts_it in tasks,
    a_task_may_abort_itself in tasks,
    a_detached_task_runs_on in tasks,
    tasks_of_an_ended_runtime_are_dropped_with_it in tasks,
    timers_keep_order_and_are_never_early in tasks,
    ten_thousand_timers in tasks,
    a_sleep_can_be_reset_and_cancelled in tasks,
    a_timeout_drops_what_it_waits_for in tasks,
    a_mailbox_takes_storms_from_other_threads in tasks,
    a_gone_mailbox_gives_values_back in tasks,
    wakers_work_from_other_threads in tasks,
    a_late_wake_finds_nobody in tasks,
    sockets_and_bytes_may_outlive_the_runtime in tasks,
    a_runtime_can_run_again in tasks,
    a_panic_of_a_task_comes_out in tasks,
    two_runtimes_share_a_listener in tasks,
    counters_move in tasks,
}
