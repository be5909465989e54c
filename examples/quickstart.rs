//! The smallest embedding: one VIP, two reals, on one interface.
//!
//! cargo run --release --example quickstart -- eth0 0a:00:00:00:00:fe
//!
//! The arguments are the interface that clients' packets arrive on, and the MAC address of the
//! router behind it that leads to the reals (`ip neighbour`). Needs root. Enter ends it, and so does
//! Ctrl-C: the program leaves the interface with the process.

use std::env;
use std::error::Error;
use std::io;

use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(interface), Some(gateway)) = (arguments.next(), arguments.next()) else {
        return Err("usage: quickstart INTERFACE GATEWAY-MAC".into());
    };

    // Settings are checked here and the kernel's verifier runs; nothing is attached yet.
    let mut katran = Katran::builder()
        .gateway_mac(gateway.parse()?)
        .flow_table_size(1_000_000) // flows remembered, about 120 bytes each
        .load()?;

    // The service, and who serves it: the first real gets three new flows for each of the second.
    let vip = Vip::tcp("203.0.113.1:80".parse()?);
    katran.add_vip(vip, VipFlags::empty())?;
    katran.add_real(vip, Real::new("198.51.100.1".parse()?).weight(3))?;
    katran.add_real(vip, Real::new("198.51.100.2".parse()?))?;

    // From now on packets are balanced, until `katran` is dropped.
    let attachment = katran.attach(&interface, XdpMode::Auto)?;
    println!("balancing {vip} on {interface}, {} mode", attachment.mode);
    println!("press Enter to end");
    io::stdin().read_line(&mut String::new())?;

    for real in katran.reals(vip)? {
        let count = katran.real_counters(real.address())?.forwarded;
        println!("{}: {} packets", real.address(), count.packets);
    }
    Ok(())
}
