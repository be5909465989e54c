//! Asks the kernel a question by netlink(7), and reads its answers.

use std::io;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_core::NLM_F_DUMP_INTR;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_core::NetlinkSerializable;
use netlink_sys::Socket;

use super::frames::Frame;
use super::frames::frames;

/// Longer than any message of the kernel, which fits a page or two.
pub(super) const MESSAGE_BYTES: usize = 64 * 1024;

/// Sends a question, with the number and flags in its header, and appends the answers that `parse`
/// reads; returns a kernel error as such. False: the list changed while the kernel sent it.
pub(crate) fn exchange<M: NetlinkSerializable>(
    socket: &Socket,
    mut question: NetlinkMessage<M>,
    parse: impl Fn(&Frame<'_>) -> io::Result<NetlinkMessage<M>>,
    answers: &mut Vec<M>,
) -> io::Result<bool> {
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let asked = question.header;
    let mut whole = true;
    let mut received = Vec::with_capacity(MESSAGE_BYTES);
    loop {
        received.clear();
        socket.recv(&mut received, 0)?;
        for frame in frames(&received) {
            let frame = frame?;
            // A leftover answer to an earlier question has another number.
            if frame.sequence() != asked.sequence_number {
                continue;
            }
            let message = parse(&frame)?;
            whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(whole),
                NetlinkPayload::Error(error) => match error.code {
                    None => return Ok(true),
                    Some(_) => return Err(error.to_io()),
                },
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
            if asked.flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                return Ok(true);
            }
        }
    }
}
