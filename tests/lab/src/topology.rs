//! The ready-made network: a client, a router, balancers, and backends that answer directly.
//!
//! | link | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | client | 192.0.2.2/24, router .1 | 2001:db8:c::2/64, router ::1 |
//! | balancer `i` | 10.0.`i`.2/30, router .1 | 2001:db8:b:`i`::2/64, router ::1 |
//! | backend `j` | 198.51.100.(`j` + 1)/32, router .254 | 2001:db8:2::(`j` + 1)/128, router ::ffff |
//! | VIPs | 203.0.113.1 and others | 2001:db8:1::1 and others |
//!
//! The router calls its interfaces `client`, `bal<i>` and `real<j>`; every other host has `eth0`.
//! Indices count from 0 and IPv6 groups are hexadecimal.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::Host;
use crate::MacAddr;
use crate::TcpServer;
use crate::UdpServer;
use crate::veth;

/// The router's address on every backend's link.
pub const BACKEND_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);

/// The router's address on every backend's link.
pub const BACKEND_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0xffff);

/// The number is one byte of an address.
const MOST_OF_A_KIND: usize = 250;

/// The size and shape of a [`Lab`].
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// The number of balancers, each with its own link. Default 1, at most 250.
    pub balancers: usize,
    /// The number of backends, each dual-stack with its own link. Default 2, at most 250.
    pub backends: usize,
    /// The service's addresses, routed to the balancers and assigned to the backends' `lo`. Default
    /// 203.0.113.1 and 2001:db8:1::1.
    pub vips: Vec<IpAddr>,
    /// MTU of the client's link. Default 1500.
    pub client_mtu: u32,
    /// MTU of the links behind the router, with room for the outer headers. Default 1600.
    pub inner_mtu: u32,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            balancers: 1,
            backends: 2,
            vips: vec![
                Ipv4Addr::new(203, 0, 113, 1).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).into(),
            ],
            client_mtu: 1500,
            inner_mtu: 1600,
        }
    }
}

/// Hosts joined to a network; see the [crate's](crate) diagram.
///
/// Reverse-path filters are off everywhere, so that packets with the balancers' made-up outer
/// source addresses arrive, and ICMP errors are not limited in rate.
#[must_use = "the network goes when the lab is dropped"]
#[derive(Debug)]
pub struct Lab {
    /// The host that connections come from.
    pub client: Host,
    /// Forwards everything, and has the VIPs' routes.
    pub router: Host,
    /// The load balancer's hosts.
    pub balancers: Vec<Balancer>,
    /// The service's hosts.
    pub backends: Vec<Backend>,
    /// The service's addresses.
    pub vips: Vec<IpAddr>,
    /// Balancers in the VIPs' routes.
    routed: Mutex<BTreeSet<usize>>,
}

/// A balancer of a [`Lab`]. It does not forward: what its XDP program passes stays there.
#[derive(Debug)]
pub struct Balancer {
    /// The host.
    pub host: Host,
    /// Its only interface besides `lo`: where the XDP program goes.
    pub interface: String,
    /// That interface's address.
    pub mac: MacAddr,
    /// The router's address on this link: the load balancer's gateway.
    pub gateway_mac: MacAddr,
    /// The router's name for its end of the link.
    pub router_interface: String,
    /// The host's IPv4 address.
    pub v4: Ipv4Addr,
    /// The host's IPv6 address.
    pub v6: Ipv6Addr,
}

/// A backend of a [`Lab`]. It has the VIPs on `lo`, but unwraps no tunnelled packets: a test
/// attaches a decapsulator.
#[derive(Debug)]
pub struct Backend {
    /// The host, named `backend0` and so on; so are the servers of [`Lab::serve_tcp`].
    pub host: Host,
    /// Its only interface besides `lo`: where a decapsulator goes.
    pub interface: String,
    /// That interface's address.
    pub mac: MacAddr,
    /// The router's name for its end of the link.
    pub router_interface: String,
    /// The host's IPv4 address.
    pub v4: Ipv4Addr,
    /// The host's IPv6 address.
    pub v6: Ipv6Addr,
}

impl Lab {
    /// Builds the network, which works at once.
    ///
    /// # Errors
    ///
    /// Those of the kernel or a tool, and if there are more balancers or backends than addresses.
    pub fn new(config: LabConfig) -> io::Result<Self> {
        if config.balancers.max(config.backends) > MOST_OF_A_KIND {
            let message = format!("at most {MOST_OF_A_KIND} balancers and backends");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let router = router()?;
        let lab = Self {
            client: client(&router, &config)?,
            balancers: (0..config.balancers)
                .map(|i| balancer(&router, i, config.inner_mtu))
                .collect::<io::Result<_>>()?,
            backends: (0..config.backends)
                .map(|i| backend(&router, i, &config))
                .collect::<io::Result<_>>()?,
            router,
            vips: config.vips,
            routed: Mutex::new((0..config.balancers).collect()),
        };
        lab.route_vips(|_| ())?;
        // As with a network card, a flow's packets arrive on one CPU, whose flow table knows it.
        lab.router.receive_on_cpu("client", 0)?;
        Ok(lab)
    }

    /// The first IPv4 VIP.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn vip4(&self) -> IpAddr {
        self.vip(IpAddr::is_ipv4)
    }

    /// The first IPv6 VIP.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn vip6(&self) -> IpAddr {
        self.vip(IpAddr::is_ipv6)
    }

    /// Removes a balancer from the VIPs' routes: the router spreads its flows over the others. With
    /// none left, the VIPs are unreachable.
    ///
    /// # Errors
    ///
    /// Those of `ip`.
    pub fn remove_balancer_route(&self, index: usize) -> io::Result<()> {
        self.route_vips(|routed| {
            routed.remove(&index);
        })
    }

    /// Returns a balancer to the VIPs' routes.
    ///
    /// # Errors
    ///
    /// Those of `ip`.
    ///
    /// # Panics
    ///
    /// If there is no such balancer.
    pub fn add_balancer_route(&self, index: usize) -> io::Result<()> {
        assert!(index < self.balancers.len(), "no balancer {index}");
        self.route_vips(|routed| {
            routed.insert(index);
        })
    }

    /// Makes the router refuse packets to the client above this size, with the client's interface
    /// unchanged: it answers the VIP that sent one with "too big". Can be called again.
    ///
    /// # Errors
    ///
    /// Those of `ip`.
    pub fn limit_client_mtu(&self, mtu: u32) -> io::Result<()> {
        self.router.ip(&format!(
            "route replace 192.0.2.2/32 dev client mtu lock {mtu}"
        ))?;
        self.router.ip(&format!(
            "route replace 2001:db8:c::2/128 dev client mtu lock {mtu}"
        ))?;
        Ok(())
    }

    /// Starts a [`TcpServer`] on each backend, named like the backend's host.
    ///
    /// # Errors
    ///
    /// If the port is taken on one of them.
    pub fn serve_tcp(&self, port: u16) -> io::Result<Vec<TcpServer>> {
        self.backends
            .iter()
            .map(|b| TcpServer::start(&b.host, port, b.host.name()))
            .collect()
    }

    /// Starts a [`UdpServer`] on each backend, on the VIPs and its own addresses, named like the
    /// backend's host.
    ///
    /// # Errors
    ///
    /// If the port is taken on one of them.
    pub fn serve_udp(&self, port: u16) -> io::Result<Vec<UdpServer>> {
        let start = |b: &Backend| {
            let mut addresses = self.vips.clone();
            addresses.extend([IpAddr::from(b.v4), IpAddr::from(b.v6)]);
            UdpServer::start(&b.host, &addresses, port, b.host.name())
        };
        self.backends.iter().map(start).collect()
    }

    fn vip(&self, family: fn(&IpAddr) -> bool) -> IpAddr {
        let vip = self.vips.iter().copied().find(family);
        vip.unwrap_or_else(|| panic!("no VIP of this family in {:?}", self.vips))
    }

    fn route_vips(&self, change: impl FnOnce(&mut BTreeSet<usize>)) -> io::Result<()> {
        let mut routed = self.routed.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut routed);
        for vip in &self.vips {
            let prefix = host_prefix(*vip);
            let mut route = format!("route replace {prefix}");
            for balancer in routed.iter().map(|&i| &self.balancers[i]) {
                let via = match vip {
                    IpAddr::V4(_) => IpAddr::from(balancer.v4),
                    IpAddr::V6(_) => IpAddr::from(balancer.v6),
                };
                let interface = &balancer.router_interface;
                // Writing to a string cannot fail.
                let _ = write!(route, " nexthop via {via} dev {interface}");
            }
            if routed.is_empty() {
                route = format!("route replace unreachable {prefix}");
            }
            self.router.ip(&route)?;
        }
        Ok(())
    }
}

impl Backend {
    /// Sets the default routes' MTU, which TCP's segment size follows. It starts at 1500, as in a
    /// network whose clients have no more.
    ///
    /// # Errors
    ///
    /// Those of `ip`.
    pub fn set_route_mtu(&self, mtu: u32) -> io::Result<()> {
        for gateway in [
            IpAddr::from(BACKEND_GATEWAY_V4),
            IpAddr::from(BACKEND_GATEWAY_V6),
        ] {
            self.host.ip(&format!(
                "route replace default via {gateway} dev eth0 mtu {mtu}"
            ))?;
        }
        Ok(())
    }
}

fn router() -> io::Result<Host> {
    let router = Host::new("router")?;
    for (key, value) in [
        ("net.ipv4.ip_forward", 1),
        ("net.ipv6.conf.all.forwarding", 1),
        // ECMP by addresses and ports.
        ("net.ipv4.fib_multipath_hash_policy", 1),
        ("net.ipv6.fib_multipath_hash_policy", 1),
        // Tests provoke many ICMP errors in a second.
        ("net.ipv4.icmp_ratelimit", 0),
        ("net.ipv6.icmp.ratelimit", 0),
        // It forwards between hosts that are not on one link.
        ("net.ipv4.conf.all.send_redirects", 0),
        ("net.ipv4.conf.default.send_redirects", 0),
    ] {
        router.sysctl(key, value)?;
    }
    Ok(router)
}

fn client(router: &Host, config: &LabConfig) -> io::Result<Host> {
    let client = Host::new("client")?;
    veth(
        client.port("eth0").mac(mac(0, 0, End::Host)),
        router.port("client").mac(mac(0, 0, End::Router)),
        config.client_mtu,
    )?;
    for (host, interface, v4, v6) in [
        (&client, "eth0", "192.0.2.2/24", "2001:db8:c::2/64"),
        (router, "client", "192.0.2.1/24", "2001:db8:c::1/64"),
    ] {
        host.ip(&format!("addr add {v4} dev {interface}"))?;
        host.ip(&format!("addr add {v6} dev {interface} nodad"))?;
    }
    client.ip("route add default via 192.0.2.1")?;
    client.ip("route add default via 2001:db8:c::1")?;
    Ok(client)
}

fn balancer(router: &Host, index: usize, mtu: u32) -> io::Result<Balancer> {
    let host = Host::new(format!("balancer{index}"))?;
    let i = octet(index);
    let router_interface = format!("bal{index}");
    let (own, gateway_mac) = (mac(1, i, End::Host), mac(1, i, End::Router));
    veth(
        host.port("eth0").mac(own),
        router
            .port(&router_interface)
            .mac(gateway_mac)
            .takes_xdp_tx(),
        mtu,
    )?;
    let v4 = Ipv4Addr::new(10, 0, i, 2);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xb, i.into(), 0, 0, 0, 2);
    let gateway_v4 = Ipv4Addr::new(10, 0, i, 1);
    let gateway_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xb, i.into(), 0, 0, 0, 1);
    host.ip(&format!("addr add {v4}/30 dev eth0"))?;
    host.ip(&format!("addr add {v6}/64 dev eth0 nodad"))?;
    router.ip(&format!("addr add {gateway_v4}/30 dev {router_interface}"))?;
    router.ip(&format!(
        "addr add {gateway_v6}/64 dev {router_interface} nodad"
    ))?;
    host.ip(&format!("route add default via {gateway_v4}"))?;
    host.ip(&format!("route add default via {gateway_v6}"))?;
    Ok(Balancer {
        host,
        interface: "eth0".into(),
        mac: own,
        gateway_mac,
        router_interface,
        v4,
        v6,
    })
}

fn backend(router: &Host, index: usize, config: &LabConfig) -> io::Result<Backend> {
    let host = Host::new(format!("backend{index}"))?;
    let i = octet(index);
    let router_interface = format!("real{index}");
    let own = mac(2, i, End::Host);
    veth(
        host.port("eth0").mac(own),
        router.port(&router_interface).mac(mac(2, i, End::Router)),
        config.inner_mtu,
    )?;
    let backend = Backend {
        host,
        interface: "eth0".into(),
        mac: own,
        router_interface,
        v4: Ipv4Addr::new(198, 51, 100, i + 1),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, u16::from(i) + 1),
    };
    let Backend {
        host,
        router_interface,
        ..
    } = &backend;
    for (address, gateway) in [
        (IpAddr::from(backend.v4), IpAddr::from(BACKEND_GATEWAY_V4)),
        (IpAddr::from(backend.v6), IpAddr::from(BACKEND_GATEWAY_V6)),
    ] {
        // A link's two addresses share no prefix, so each needs a route.
        let (own, other) = (host_prefix(address), host_prefix(gateway));
        host.ip(&format!("addr add {own} dev eth0{}", nodad(address)))?;
        host.ip(&format!("route add {other} dev eth0"))?;
        let dad = nodad(address);
        router.ip(&format!("addr add {other} dev {router_interface}{dad}"))?;
        router.ip(&format!("route add {own} dev {router_interface}"))?;
    }
    for &vip in &config.vips {
        let prefix = host_prefix(vip);
        host.ip(&format!("addr add {prefix} dev lo{}", nodad(vip)))?;
    }
    backend.set_route_mtu(1500)?;
    Ok(backend)
}

enum End {
    Host = 1,
    Router,
}

/// A locally administered address that shows its link in a test's output.
fn mac(link_kind: u8, index: u8, end: End) -> MacAddr {
    [0x02, 0, 0, end as u8, link_kind, index]
}

fn host_prefix(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("{address}/32"),
        IpAddr::V6(_) => format!("{address}/128"),
    }
}

/// The word that makes an IPv6 address usable at once.
fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

fn octet(index: usize) -> u8 {
    // `Lab::new` allows `MOST_OF_A_KIND`.
    u8::try_from(index).unwrap_or(u8::MAX)
}
