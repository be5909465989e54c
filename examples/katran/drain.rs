//! `katran drain`: no new flows for a backend, and when it may be switched off.
//!
//! New connections go elsewhere at once. A datagram does not say whether its flow is new: for `udp_timeout` after the drain has
//! begun, those that no entry of a flow table leads still go to the backend if its slot was the backend's, and are remembered
//! there as long as they go on. (With `flow_tracking = "all"` every flow has an entry, and new ones go elsewhere at once.)

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use katran::Vip;

use crate::client::To;
use crate::common::say;
use crate::report::Drain;
use crate::socket::Request;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Which, and what with it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The backend. It is drained until --undo or until the balancer ends: write `weight = 0` into
    /// the document for longer
    real: IpAddr,
    /// Only for this VIP, such as 203.0.113.1:443/tcp; without it for all that have the backend
    vip: Option<Vip>,
    /// Give it the weight of the document again
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
    /// Wait until it may be switched off: nothing has gone to it for a minute, or its flows are over
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
        // No datagram says that it is the first.
        let late = match vip.ends_with("/udp") && !arguments.undo {
            true => {
                ": those that begin before udp_timeout (30 s unless set) is over may still go there"
            }
            false => "",
        };
        say(format!("{real} {what} {vip}{late}"));
    }
    if arguments.undo {
        return Ok(());
    }
    // VIPs that were waited for when it was said.
    let mut said = 0;
    loop {
        let waiting = waiting(&arguments.to, real, &vips)?;
        if waiting.is_empty() {
            say(format!("{real} may be switched off"));
            return Ok(());
        }
        if waiting.len() != said {
            for (vip, drain) in &waiting {
                let silent = drain
                    .silent
                    .map_or("packets go to it".to_owned(), |silent| {
                        format!("the last packet to it was {silent:.0} s ago")
                    });
                say(format!("{vip}: {silent}"));
            }
        }
        if !arguments.wait {
            say(format!(
                "{real} may not be switched off yet: `katran status` tells when"
            ));
            return Ok(());
        }
        said = waiting.len();
        thread::sleep(LOOK);
    }
}

/// VIPs whose drain goes on.
fn waiting(to: &To, real: IpAddr, vips: &[String]) -> Result<Vec<(String, Drain)>> {
    let report = to.report(false)?;
    let mut waiting = Vec::new();
    for of_vip in report.vips.iter().filter(|of| vips.contains(&of.vip)) {
        for of_real in of_vip.reals.iter().filter(|of| of.real == real) {
            let Some(drain) = of_real.drain else {
                anyhow::bail!("{real} is drained for {} no more", of_vip.vip);
            };
            if !drain.done {
                waiting.push((of_vip.vip.clone(), drain));
            }
        }
    }
    Ok(waiting)
}
