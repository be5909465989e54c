//! An interface's queueing disciplines and filters, by rtnetlink (tc(8)): whether there is room for
//! our filter, and which program is in its place.

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcAttribute;
use netlink_packet_route::tc::TcFilterBpfOption;
use netlink_packet_route::tc::TcHandle;
use netlink_packet_route::tc::TcMessage;
use netlink_packet_route::tc::TcOption;

use super::requests::Requests;
use crate::sys::tc::Direction;

impl Requests {
    /// Whether an interface has a clsact queueing discipline, or another one in its place
    /// (ingress).
    pub(crate) fn clsact(&mut self, index: u32) -> io::Result<Option<bool>> {
        let mut question = TcMessage::default();
        question.header.index = index as i32;
        let question = RouteNetlinkMessage::GetQueueDiscipline(question);
        let answers = self.ask(question, NLM_F_DUMP)?;
        let disciplines = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => Some(message),
            _ => None,
        });
        let mut there = disciplines.filter(|message| {
            message.header.index == index as i32 && message.header.parent == TcHandle::CLSACT
        });
        Ok(there.next().map(is_clsact))
    }

    /// Whether an interface's clsact queueing discipline has any filters.
    pub(crate) fn has_tc_filters(&mut self, index: u32) -> io::Result<bool> {
        for direction in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
            if !self.tc_filters(index, direction)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The program of a filter of an interface's clsact queueing discipline, if there is such a
    /// filter. Any process may ask for its name, unlike a program's own.
    pub(crate) fn tc_program(
        &mut self,
        index: u32,
        direction: Direction,
        priority: u16,
        handle: u32,
    ) -> io::Result<Option<TcProgram>> {
        let direction = match direction {
            Direction::Egress => TcHandle::MIN_EGRESS,
            Direction::Ingress => TcHandle::MIN_INGRESS,
        };
        let filters = self.tc_filters(index, direction)?;
        let mut filters = filters.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message) => Some(message),
            _ => None,
        });
        let filter = filters.find(|message| {
            message.header.info >> 16 == u32::from(priority)
                && u32::from(message.header.handle) == handle
        });
        Ok(filter.map(program_of))
    }

    fn tc_filters(&mut self, index: u32, direction: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut question = TcMessage::default();
        question.header.index = index as i32;
        question.header.parent = TcHandle {
            major: TcHandle::CLSACT.major,
            minor: direction,
        };
        self.ask(RouteNetlinkMessage::GetTrafficFilter(question), NLM_F_DUMP)
    }
}

/// The program of a tc filter; all zero if the filter is of another type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcProgram {
    /// Its id.
    pub(crate) id: u32,
    pub(crate) name: String,
}

pub(super) fn is_clsact(message: &TcMessage) -> bool {
    let mut attributes = message.attributes.iter();
    attributes.any(|attribute| match attribute {
        TcAttribute::Kind(kind) => kind == "clsact",
        _ => false,
    })
}

pub(super) fn program_of(message: &TcMessage) -> TcProgram {
    let mut program = TcProgram::default();
    let attributes = message.attributes.iter();
    let options = attributes.filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    for option in options.flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program.id = *id,
            // libbpf writes `name:[number]`.
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                let name = name.split_once(":[").map_or(&name[..], |(name, _)| name);
                program.name = name.to_owned();
            }
            _ => {}
        }
    }
    program
}
