//! Probes by a datagram and its answer.

use super::super::check::Answer;
use super::super::check::Udp;
use super::Failure;
use super::Place;
use super::udp;

/// The longest datagram.
const MAX_DATAGRAM: usize = 65_535;

pub(super) async fn ask(question: &Udp, place: Place) -> std::result::Result<(), Failure> {
    let socket = udp(place).await?;
    socket.send(&question.payload).await?;
    let mut answer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut answer).await?;
        let answer = &answer[..length];
        let fits = match &question.answer {
            Answer::Any => true,
            Answer::Echo => *answer == question.payload,
            Answer::Exactly(bytes) => answer == bytes,
            Answer::Contains(bytes) => {
                bytes.is_empty() || answer.windows(bytes.len()).any(|window| window == bytes)
            }
        };
        // Anything else is a late answer to another probe, or comes from another sender.
        if fits {
            return Ok(());
        }
    }
}
