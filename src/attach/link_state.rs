//! The state of a link to an interface.

use std::io;
use std::os::fd::BorrowedFd;

use super::list::Witness;
use super::place::AttachmentState;
use super::place::Target;
use crate::sys::link::Link;
use crate::sys::program;

/// The state of a link to an interface that was given `program`. `is_it` tells whether the
/// interface with its index in the calling thread's network namespace has that program.
pub(super) fn link_state(
    link: &Link,
    program: BorrowedFd<'_>,
    target: &Target,
    is_it: impl FnOnce(u32) -> bool,
) -> AttachmentState {
    match (link.info(), program::info(program)) {
        (Ok(of), _) if of.index == 0 => AttachmentState::Gone,
        (Ok(of), _)
            if of.index != target.place.index || !target.is_in_place(|| is_it(of.program)) =>
        {
            AttachmentState::Moved
        }
        (Ok(of), Ok(own)) if of.program != own.id => AttachmentState::Replaced,
        _ => AttachmentState::Attached,
    }
}

/// A function for another thread that reports a link's state. It cannot detect that the interface
/// moved and kept its index.
pub(super) fn link_witness(
    link: &Link,
    program: BorrowedFd<'_>,
    target: &Target,
) -> io::Result<Witness> {
    let (link, own) = (link.witness()?, program::info(program)?.id);
    let index = target.place.index;
    Ok(Box::new(move || match link.info() {
        Ok(of) if of.index == 0 => AttachmentState::Gone,
        Ok(of) if of.index != index => AttachmentState::Moved,
        Ok(of) if of.program != own => AttachmentState::Replaced,
        _ => AttachmentState::Attached,
    }))
}
