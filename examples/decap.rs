//! The backend's end of the tunnel: strips IP in IP from what arrives on an interface.
//!
//! cargo run --release --example decap -- --interface eth0
//!
//! The VIP has to be an address of this host (`ip addr add 203.0.113.1/32 dev lo`). Prints counters
//! every second; SIGINT and SIGTERM detach and end the program. Needs root.

use std::error::Error;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use clap::Parser;
use clap::ValueEnum;
use katran::Decap;
use katran::XdpMode;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

/// Strips IP in IP from what arrives on an interface.
#[derive(Parser)]
struct Arguments {
    /// The interface that the balancers' packets arrive on.
    #[arg(long)]
    interface: String,
    /// Where in the receive path to run.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Strip only tunnels that end at this address; once per family.
    #[arg(long)]
    destination: Vec<IpAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Native where the driver has it, else generic.
    Auto,
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Native => Self::Native,
            Mode::Generic => Self::Generic,
        }
    }
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("decap: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (tell, stopped) = mpsc::channel();
    thread::spawn(move || {
        for signal in &mut signals {
            // The other end is gone only when the program is ending anyway.
            let _ = tell.send(signal);
        }
    });

    let mut builder = Decap::builder();
    for address in &arguments.destination {
        builder = builder.destination(*address);
    }
    let mut decap = builder.load()?;
    let attachment = decap.attach(&arguments.interface, arguments.mode.into())?;
    println!(
        "decapsulating on {} in {} mode",
        attachment.interface, attachment.mode
    );
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_secs(1)) {
        let count = decap.counters()?;
        println!(
            "frames {}  stripped: IPv4 {}, IPv6 {}  foreign {}  dropped {}",
            count.total,
            count.ipip_v4,
            count.ipip_v6,
            count.foreign,
            count.drop_truncated + count.drop_options + count.drop_fragment + count.drop_head
        );
    }
    decap.detach(&arguments.interface)?;
    println!("detached from {}", arguments.interface);
    Ok(())
}
