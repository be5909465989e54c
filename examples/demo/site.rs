//! The demo's network: the lab's hosts with a balancer, decapsulators and web servers, and what the
//! parts ask of it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Decap;
use katran::Katran;
use katran::MacAddr;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::XdpMode;
use katran::state::VipState;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::Process;

use crate::Result;
use crate::web;

/// What a user would write: nothing below has addresses or weights.
const CONFIGURATION: &str = include_str!("lb.toml");
const BACKENDS: usize = 4;
/// The port of the web site's VIPs.
const HTTP: u16 = 80;
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that runs. Servers and programs are dropped before their hosts.
pub(crate) struct Site {
    _web_servers: Vec<Process>,
    /// One on each backend.
    pub(crate) decaps: Vec<Decap>,
    pub(crate) katran: Katran,
    /// The configuration file, with the lab's gateway.
    pub(crate) configured: State,
    pub(crate) lab: Lab,
}

impl Site {
    pub(crate) fn new(scratch: &Path) -> Result<Self> {
        let mut configured = State::from_toml(CONFIGURATION)?;
        let vips: BTreeSet<IpAddr> = configured.vips.iter().map(|v| v.vip.address()).collect();
        let lab = Lab::new(LabConfig {
            backends: BACKENDS,
            vips: vips.into_iter().collect(),
            ..LabConfig::default()
        })?;

        let balancer = &lab.balancers[0];
        let settings = configured.balancer.get_or_insert_default();
        settings.gateway_mac = Some(MacAddr::new(balancer.gateway_mac).into());
        let mut katran = configured.builder()?.load()?;
        katran.apply(&configured)?;
        balancer
            .host
            .run(|| katran.attach(&balancer.interface, XdpMode::Native))?;

        let mut decaps = Vec::new();
        for backend in &lab.backends {
            let mut decap = Decap::builder().load()?;
            backend
                .host
                .run(|| decap.attach(&backend.interface, XdpMode::Native))?;
            decaps.push(decap);
        }

        web::write_download(scratch)?;
        let mut web_servers = Vec::new();
        for backend in &lab.backends {
            let mut server = web::start(&backend.host, scratch)?;
            wait_until_listening(&backend.host, HTTP, &mut server)?;
            web_servers.push(server);
        }
        let site = Self {
            _web_servers: web_servers,
            decaps,
            katran,
            configured,
            lab,
        };
        for real in site.configured.vips.iter().flat_map(|vip| &vip.reals) {
            if site.backend_of(real.address()).is_none() {
                return Err(format!("lb.toml: no backend has {}", real.address()).into());
            }
        }
        Ok(site)
    }

    /// The VIPs of the configuration with this port, IPv4 first.
    pub(crate) fn services(&self, port: u16) -> Vec<VipState> {
        let mut services = self.configured.vips.clone();
        services.retain(|service| service.vip.port() == port);
        services.sort_by_key(|service| service.vip.address());
        services
    }

    /// The VIPs of the web site, IPv4 first.
    pub(crate) fn web(&self) -> Vec<VipState> {
        self.services(HTTP)
    }

    /// The reals of a VIP by their backends' numbers; `None` for a backend without one.
    pub(crate) fn reals(&self, service: &VipState) -> Vec<Option<Real>> {
        let mut reals = vec![None; BACKENDS];
        for real in &service.reals {
            if let Some(backend) = self.backend_of(real.address()) {
                reals[backend] = Some(*real);
            }
        }
        reals
    }

    /// The number of the backend with this address.
    pub(crate) fn backend_of(&self, address: IpAddr) -> Option<usize> {
        let has = |b: &katran_lab::Backend| [IpAddr::from(b.v4), b.v6.into()].contains(&address);
        self.lab.backends.iter().position(has)
    }

    /// The number of the backend with this name.
    pub(crate) fn backend_named(&self, name: &str) -> Result<usize> {
        let named = |b: &katran_lab::Backend| b.host.name() == name;
        let position = self.lab.backends.iter().position(named);
        position.ok_or_else(|| format!("{name:?} is no backend").into())
    }

    /// The names of all backends.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.lab.backends.iter().map(|backend| backend.host.name())
    }

    /// The configuration with other weights for all reals of some backends: `Some(0)` drains,
    /// `None` removes.
    pub(crate) fn with_weights(&self, weights: &[(usize, Option<u32>)]) -> State {
        let mut state = self.configured.clone();
        for vip in &mut state.vips {
            vip.reals = vip
                .reals
                .iter()
                .filter_map(|real| {
                    let backend = self.backend_of(real.address());
                    match weights.iter().find(|(number, _)| Some(*number) == backend) {
                        Some((_, weight)) => weight.map(|weight| real.weight(weight)),
                        None => Some(*real),
                    }
                })
                .collect();
        }
        state
    }

    /// Applies the configuration file.
    pub(crate) fn restore(&mut self) -> Result<()> {
        self.katran.apply(&self.configured)?;
        Ok(())
    }
}

/// `IPv4` or `IPv6`.
pub(crate) fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// The address where clients find a VIP.
pub(crate) fn address_of(vip: Vip) -> SocketAddr {
    SocketAddr::new(vip.address(), vip.port())
}

/// Waits until a server accepts connections, without making one.
pub(crate) fn wait_until_listening(host: &Host, port: u16, server: &mut Process) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !host.run(|| is_listening(port))? {
        if !server.is_running()? {
            return Err(format!("the server for port {port} of {} ended", host.name()).into());
        }
        if Instant::now() > end {
            return Err(format!("nothing listens on port {port} of {}", host.name()).into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether a server listens on a port of the calling thread's namespace, for IPv6 (the servers here
/// bind that last, or bind both families with it).
fn is_listening(port: u16) -> io::Result<bool> {
    /// `TCP_LISTEN`, as the kernel prints it.
    const LISTEN: &str = "0A";
    let sockets = fs::read_to_string("/proc/thread-self/net/tcp6")?;
    let port = format!(":{port:04X}");
    Ok(sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        local.ends_with(&port) && fields.nth(1) == Some(LISTEN)
    }))
}
