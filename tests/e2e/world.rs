//! What every test starts from: a lab whose backends decapsulate and serve TCP and UDP on port 80,
//! and a balancer for each of its VIPs.

use std::net::IpAddr;
use std::net::SocketAddr;

use katran::Builder;
use katran::Decap;
use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::TcpServer;
use katran_lab::UdpServer;
use katran_lab::require_root;

pub(crate) const PORT: u16 = 80;

/// A lab at work. Fields are dropped in their order: programs before hosts.
pub(crate) struct World {
    pub(crate) katrans: Vec<Katran>,
    pub(crate) decaps: Vec<Decap>,
    _tcp: Vec<TcpServer>,
    _udp: Vec<UdpServer>,
    pub(crate) lab: Lab,
}

/// Which address of a backend a VIP's packets go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) struct Setup {
    pub(crate) balancers: usize,
    pub(crate) backends: usize,
    pub(crate) mode: XdpMode,
    /// The family of the reals, for the IPv4 and the IPv6 VIP.
    pub(crate) reals: [Family; 2],
    pub(crate) client_mtu: u32,
    pub(crate) configure: fn(Builder) -> Builder,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            balancers: 1,
            backends: 3,
            mode: XdpMode::Native,
            reals: [Family::V4, Family::V6],
            client_mtu: 1500,
            configure: |builder| builder,
        }
    }
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        require_root();
        let lab = Lab::new(LabConfig {
            balancers: setup.balancers,
            backends: setup.backends,
            client_mtu: setup.client_mtu,
            ..LabConfig::default()
        })
        .unwrap();
        let tcp = lab.serve_tcp(PORT).unwrap();
        let udp = lab.serve_udp(PORT).unwrap();
        let decaps = lab
            .backends
            .iter()
            .map(|backend| {
                let mut decap = Decap::builder().load().unwrap();
                let attach = || decap.attach(&backend.interface, setup.mode);
                let attachment = backend.host.run(attach).unwrap();
                assert_eq!(attachment.mode, setup.mode);
                decap
            })
            .collect();
        let mut world = Self {
            katrans: Vec::new(),
            decaps,
            _tcp: tcp,
            _udp: udp,
            lab,
        };
        for index in 0..setup.balancers {
            let katran = world.balancer(index, &setup);
            world.katrans.push(katran);
        }
        world
    }

    /// Loads, configures and attaches the balancer of one host.
    pub(crate) fn balancer(&self, index: usize, setup: &Setup) -> Katran {
        let host = &self.lab.balancers[index];
        let builder = Katran::builder()
            .gateway_mac(host.gateway_mac.into())
            .flow_table_size(10_000);
        let mut katran = (setup.configure)(builder).load().unwrap();
        for (vip, family) in self
            .vips()
            .into_iter()
            .zip([setup.reals, setup.reals].concat())
        {
            katran.add_vip(vip, VipFlags::empty()).unwrap();
            for backend in 0..self.lab.backends.len() {
                let real = Real::new(self.real(backend, family));
                katran.add_real(vip, real).unwrap();
            }
        }
        let attach = || katran.attach(&host.interface, setup.mode);
        let attachment = host.host.run(attach).unwrap();
        assert_eq!(attachment.mode, setup.mode);
        katran
    }

    /// The VIPs: TCP over IPv4 and IPv6, UDP over both.
    pub(crate) fn vips(&self) -> [Vip; 4] {
        let (v4, v6) = (self.lab.vip4(), self.lab.vip6());
        [
            Vip::tcp((v4, PORT).into()),
            Vip::tcp((v6, PORT).into()),
            Vip::udp((v4, PORT).into()),
            Vip::udp((v6, PORT).into()),
        ]
    }

    pub(crate) fn vip4(&self) -> Vip {
        self.vips()[0]
    }

    pub(crate) fn vip6(&self) -> Vip {
        self.vips()[1]
    }

    pub(crate) fn real(&self, backend: usize, family: Family) -> IpAddr {
        let backend = &self.lab.backends[backend];
        match family {
            Family::V4 => backend.v4.into(),
            Family::V6 => backend.v6.into(),
        }
    }

    /// The index of the backend whose server calls itself `name`.
    pub(crate) fn named(&self, name: &str) -> usize {
        let is_named = |backend: &katran_lab::Backend| backend.host.name() == name;
        self.lab.backends.iter().position(is_named).unwrap()
    }

    pub(crate) fn connect(&self, vip: Vip) -> TcpClient {
        TcpClient::connect(&self.lab.client, socket(vip)).unwrap()
    }

    /// The name of the backend that answers a new connection.
    pub(crate) fn ask_once(&self, vip: Vip) -> String {
        self.connect(vip).ask("who").unwrap()
    }
}

pub(crate) fn socket(vip: Vip) -> SocketAddr {
    (vip.address(), vip.port()).into()
}
