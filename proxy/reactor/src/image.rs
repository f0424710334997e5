//! The memory of the program's own files.
//!
//! **Purpose.** Starting and taking in a configuration use far more of the program than serving does: its parsers, its
//! relocations, the probe. The kernel maps such pages in runs of 64 KiB and leaves them mapped;
//! [`release_image`] unmaps them, and what is still needed comes back from the page cache on its next use.
//! **Limits.** Only segments that the files themselves declare read-only: what was relocated or written stays. A
//! breakpoint that a debugger wrote before the call is lost.
//! **Source.** `dl_iterate_phdr(3)`, `madvise(2)`: of a private mapping of a file, `MADV_DONTNEED` frees the pages, and
//! they are read from the file again.
//! **Tests.** `tests/image.rs`, a process of its own.

use std::ffi::{c_int, c_void};
use std::slice;

/// Unmaps the read-only pages of the executable and of its libraries until their next use.
///
/// Cancel: does not wait. Costs each thread a page fault for each run of 64 KiB that it goes on using, about a microsecond.
pub fn release_image() {
    // SAFETY: the callback has the signature asked for and is given no data.
    unsafe { libc::dl_iterate_phdr(Some(release), std::ptr::null_mut()) };
}

/// Releases the read-only segments of one object; always 0, to be given the next one too.
unsafe extern "C" fn release(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the loader passes an object that is valid for the time of the call, and its program headers with it.
    let (object, headers) = unsafe {
        let object = &*object;
        (object, slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    // SAFETY: a constant of the system is asked for.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        // Inward to whole pages: the next segment may begin on the last one.
        let start = (object.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
        let end = (start + header.p_memsz as usize) & !(page - 1);
        let start = start.next_multiple_of(page);
        if start < end {
            // SAFETY: the range is a part of a mapping that this object was loaded into without the right to write, so
            // what is dropped reads the same when it comes back. What cannot be dropped (the vdso, locked pages) is an
            // error that changes nothing.
            unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    0
}
