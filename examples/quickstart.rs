//! The smallest embedding: one VIP, two backends, one interface, until Ctrl-C.
//!
//! ```text
//! quickstart INTERFACE GATEWAY_MAC
//! ```
//! Run it as root on the host that the VIP's packets are routed to. GATEWAY_MAC is the MAC address
//! of the router that leads to the backends: `ip neighbour show` lists it. Each backend has the VIP
//! on `lo` and runs the example `decap`.

use anyhow::Result;
use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, interface, gateway_mac] = &arguments[..] else {
        eprintln!("Balance a VIP on an interface\n\nUsage: quickstart INTERFACE GATEWAY_MAC");
        std::process::exit(2);
    };
    let mut signals = Signals::new([SIGINT])?;

    // Loading needs no interface. The default table of millions of flows is more than a trial
    // needs.
    let mut katran = Katran::builder()
        .gateway_mac(gateway_mac.parse()?)
        .flow_table_size(100_000)
        .load()?;

    // The service, and the backends ("reals") behind it: the first gets three quarters.
    let vip = Vip::tcp("203.0.113.1:80".parse()?);
    katran.add_vip(vip, VipFlags::empty())?;
    let reals = [
        Real::new("198.51.100.1".parse()?).weight(3),
        Real::new("198.51.100.2".parse()?),
    ];
    katran.modify_reals(vip, &reals.map(RealChange::Add))?;

    // From here on packets flow. `Auto` is native mode where the driver has it.
    let attachment = katran.attach(interface, XdpMode::Auto)?;
    println!(
        "{vip} on {interface}, {} mode; Ctrl-C ends it",
        attachment.mode
    );

    signals.forever().next();
    let sent = katran.stats().vip(vip)?.forwarded;
    println!("sent {} packets to the backends", sent.packets);
    Ok(()) // Dropping the `Katran` detaches it.
}
