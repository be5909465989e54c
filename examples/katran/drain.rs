//! `katran drain`: stops new flows to a backend, and reports when it can be switched off.
//!
//! New connections go elsewhere at once. A datagram does not say whether its flow is new: for
//! `udp_timeout` after the drain began, datagrams without a flow entry still go to the backend if
//! their slot was the backend's, and their flows are remembered there. (With `flow_tracking =
//! "all"` every flow has an entry, and new ones go elsewhere at once.)

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use katran::Vip;

use crate::client::To;
use crate::common::say;
use crate::report::Drain;
use crate::socket::Request;

/// The time between two checks.
const LOOK: Duration = Duration::from_millis(500);

/// What to drain.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The backend. It stays drained until --undo or until `katran run` ends; to keep it so,
    /// write `weight = 0` into the document
    real: IpAddr,
    /// Only for this VIP, such as 203.0.113.1:443/tcp; default: all its VIPs
    vip: Option<Vip>,
    /// Restore its weight from the document
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
    /// Wait until it can be switched off: no packet for a minute, or all flows over
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    to: To,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let real = arguments.real;
    let request = Request::Drain {
        real,
        vip: arguments.vip.map(|vip| vip.to_string()),
        undo: arguments.undo,
    };
    let vips: Vec<String> = arguments.to.ask(&request)?;
    let what = match arguments.undo {
        true => "has the document's weight again for",
        false => "gets no new flows from",
    };
    for vip in &vips {
        // A datagram does not say whether its flow is new.
        let late = match vip.ends_with("/udp") && !arguments.undo {
            true => ": flows that begin within udp_timeout (default 30 s) may still go there",
            false => "",
        };
        say(format!("{real} {what} {vip}{late}"));
    }
    if arguments.undo {
        return Ok(());
    }
    // The number of VIPs in the last report.
    let mut said = 0;
    loop {
        let waiting = waiting(&arguments.to, real, &vips)?;
        if waiting.is_empty() {
            say(format!("{real} can be switched off"));
            return Ok(());
        }
        if waiting.len() != said {
            for (vip, drain) in &waiting {
                let silent = drain
                    .silent
                    .map_or("packets still go to it".to_owned(), |silent| {
                        format!("the last packet to it was {silent:.0} s ago")
                    });
                say(format!("{vip}: {silent}"));
            }
        }
        if !arguments.wait {
            say(format!(
                "do not switch {real} off yet: `katran status` shows when you can"
            ));
            return Ok(());
        }
        said = waiting.len();
        thread::sleep(LOOK);
    }
}

/// The VIPs whose drain is not over.
fn waiting(to: &To, real: IpAddr, vips: &[String]) -> Result<Vec<(String, Drain)>> {
    let report = to.report(false)?;
    let mut waiting = Vec::new();
    for of_vip in report.vips.iter().filter(|of| vips.contains(&of.vip)) {
        for of_real in of_vip.reals.iter().filter(|of| of.real == real) {
            let Some(drain) = of_real.drain else {
                let why = match of_vip.falls_back {
                    true => {
                        ": all others are down, so packets go to drained reals (drained_fallback)"
                    }
                    false => "",
                };
                anyhow::bail!("{real} is no longer drained for {}{why}", of_vip.vip);
            };
            if !drain.done {
                waiting.push((of_vip.vip.clone(), drain));
            }
        }
    }
    Ok(waiting)
}
