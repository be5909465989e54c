//! A balancer from a configuration file: loads, attaches, prints counters every second.
//!
//! cargo run --release --example balancer -- --config examples/data/lb.toml --interface eth0
//!
//! SIGHUP applies the file again; a file that is not valid is reported, and what is in force
//! stays. SIGINT and SIGTERM detach and end the program. Needs root.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use clap::Parser;
use clap::ValueEnum;
use katran::Katran;
use katran::State;
use katran::Totals;
use katran::XdpMode;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// Balances what arrives on an interface, as a configuration file says.
#[derive(Parser)]
struct Arguments {
    /// The configuration: balancer settings, VIPs and reals (TOML).
    #[arg(long)]
    config: PathBuf,
    /// The interface that clients' packets arrive on.
    #[arg(long)]
    interface: String,
    /// Where in the receive path to run.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
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
            eprintln!("balancer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(path: &Path) -> Result<State, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    State::from_toml(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    // From here on signals wait until we look; a second Ctrl-C ends the program at once.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    let mut wake = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let reload = Arc::new(AtomicBool::new(false));
    flag::register(SIGHUP, Arc::clone(&reload))?;
    let main_thread = thread::current();
    thread::spawn(move || {
        for _ in &mut wake {
            main_thread.unpark();
        }
    });

    let state = read(&arguments.config)?;
    let mut katran = state.builder()?.load()?;
    katran.apply(&state)?;
    let attachment = katran.attach(&arguments.interface, arguments.mode.into())?;
    println!(
        "balancing {} VIPs on {} in {} mode",
        katran.vips().len(),
        attachment.interface,
        attachment.mode
    );

    let mut seen = (Instant::now(), katran.totals()?);
    let mut next = seen.0 + Duration::from_secs(1);
    while !stop.load(Ordering::Relaxed) {
        if reload.swap(false, Ordering::Relaxed) {
            match read(&arguments.config).and_then(|state| Ok(katran.apply(&state)?)) {
                Ok(changes) => println!("applied {}: {changes}", arguments.config.display()),
                Err(error) => eprintln!("not applied, all stays as it is: {error}"),
            }
        }
        let now = Instant::now();
        if now < next {
            thread::park_timeout(next - now);
            continue;
        }
        next += Duration::from_secs(1);
        let totals = katran.totals()?;
        report(&katran, &totals, &seen.1, now - seen.0)?;
        seen = (now, totals);
    }
    katran.detach(&arguments.interface)?;
    println!("detached from {}", arguments.interface);
    Ok(())
}

/// One line of rates, and one for each reason that frames have been dropped for.
fn report(katran: &Katran, now: &Totals, before: &Totals, elapsed: Duration) -> katran::Result<()> {
    let rate = |now: u64, before: u64| (now - before) as f64 / elapsed.as_secs_f64();
    let flows = katran.flow_table_counters()?;
    println!(
        "in {:9.0}/s  out {:9.0}/s  {:8.1} Mbit/s  dropped {:7.0}/s  passed {:7.0}/s  \
         flows: {} new of {} packets",
        rate(now.total.packets, before.total.packets),
        rate(now.tx.packets, before.tx.packets),
        rate(now.tx.bytes, before.tx.bytes) * 8e-6,
        rate(now.drop.packets, before.drop.packets),
        rate(now.pass.packets, before.pass.packets),
        flows.misses,
        flows.packets,
    );
    if now.drop != before.drop {
        for (reason, frames) in katran.drop_reasons()?.iter() {
            if frames != 0 {
                println!("   dropped so far, {reason}: {frames}");
            }
        }
    }
    Ok(())
}
