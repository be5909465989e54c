//! The sections of a document and their keys: what the reader knows, and what `docs/configuration.md`
//! says. The keys of `[balancer]` are the table of settings (`config/settings.rs`).

use crate::config::SETTING_KEYS;

/// A section that may come many times, or the reals of a VIP.
pub(crate) struct Section {
    /// Its name, as it stands in the document.
    pub(crate) name: &'static str,
    /// How it is called in errors and in the reference.
    pub(crate) title: &'static str,
    #[cfg(test)]
    pub(crate) meaning: &'static str,
    pub(crate) own: &'static [Key],
    /// Those that other sections have, too.
    pub(crate) shared: &'static [&'static [Key]],
}

/// A key of a section.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    #[cfg(test)]
    pub(crate) meaning: &'static str,
    #[cfg(test)]
    pub(crate) unit: &'static str,
    /// What stands for it if it is left out; `None`: it has to be given.
    #[cfg(test)]
    pub(crate) default: Option<&'static str>,
    pub(crate) range: &'static str,
}

impl Section {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'static Key> + Clone {
        self.own.iter().chain(self.shared.iter().copied().flatten())
    }

    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.key(key).is_some()
    }

    pub(crate) fn key_names(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.keys().map(|key| key.name)
    }
}

macro_rules! key_rows {
    ($(
        $(#[doc = $meaning:literal])+
        $key:ident: $unit:literal, $default:expr, $range:literal;
    )+) => {
        &[$(Key {
            name: stringify!($key),
            #[cfg(test)]
            meaning: concat!($($meaning),+),
            #[cfg(test)]
            unit: $unit,
            #[cfg(test)]
            default: $default,
            range: $range,
        }),+]
    };
}

macro_rules! sections {
    ($(
        $(#[doc = $doc:literal])+
        $constant:ident = $name:literal as $title:literal {$($rows:tt)+} $(with $($shared:ident),+)?
    )+) => {
        $(pub(super) const $constant: Section = Section {
            name: $name,
            title: $title,
            #[cfg(test)]
            meaning: concat!($($doc),+),
            own: key_rows! { $($rows)+ },
            shared: &[$($($shared),+)?],
        };)+

        /// All of them, in the order in which they are written.
        pub(super) const SECTIONS: &[&Section] = &[$(&$constant),+];
    };
}

#[cfg(feature = "health")]
pub(crate) use key_rows;
#[cfg(feature = "health")]
pub(crate) use sections;

#[cfg(test)]
pub(crate) const NEEDED: Option<&str> = None;

sections! {
    /// A service: where clients' packets go to.
    VIP = "vip" as "[[vip]]" {
        /// The address of the service, or the first one of its prefix.
        address: "address", NEEDED,
            "an IPv4 or IPv6 address; not unspecified (but of a prefix), multicast, broadcast or loopback";
        /// Makes it a prefix: the service answers at each of its addresses that has no more specific VIP.
        prefix_length: "bits", Some("32 for IPv4, 128 for IPv6"), "0 to 32 for IPv4, 0 to 128 for IPv6";
        /// The port of the service; 0 stands for each that has no VIP of its own.
        port: "TCP or UDP port", NEEDED, "0 to 65,535, 0 for any";
        /// The protocol of the service.
        protocol: "choice", NEEDED, "`tcp` or `udp`";
        /// How its packets are routed; what the flags mean is told below.
        flags: "flags", Some("none"), "a list of flags; `quic` only with `udp`";
        /// How its ring is filled.
        hash: "choice", Some("as `hash_function` of `[balancer]`"), "`maglev` or `maglev-v2`";
        /// The backends, each a table in a list: `reals = [ { address = "198.51.100.1" } ]`.
        reals: "reals", Some("none"), "a list of reals";
        /// How its reals are probed, if a program does that: a table as [health.md](health.md) tells.
        health: "table", Some("as `[health]` says"), "a table";
    }

    /// A backend of a VIP.
    REAL = "reals" as "a real" {
        /// The backend's address, where tunnels end.
        address: "address", NEEDED,
            "an IPv4 or IPv6 address; not unspecified, multicast, broadcast, loopback or link-local";
        /// The share of new flows, relative to the VIP's other reals; 0 drains.
        weight: "shares", Some("1"), "0 to 4,294,967,295";
        /// Whether it is this very host: packets of VIPs with the flag `local-vip` stay here. The same in all VIPs.
        local: "true or false", Some("false"), "any";
        /// Bits for the application, kept and reported. The same in all VIPs.
        application_flags: "bits", Some("0"), "a multiple of 4, 0 to 252";
        /// Whether it gets no packets, as after a failed health check.
        down: "true or false", Some("false"), "any";
        /// How it is probed, if otherwise than the others of its VIP: a table as [health.md](health.md) tells.
        health: "table", Some("as the VIP's"), "a table";
    }

    /// A number in packets (QUIC, TCP option, stable UDP routing) that leads to a real.
    SERVER_ID = "server_id" as "[[server_id]]" {
        /// The number.
        id: "number", NEEDED, "1 to 4,294,967,295";
        /// The address of the real.
        real: "address", NEEDED, "an address as of a real";
        /// Whether packets are routed by it.
        valid: "true or false", Some("true"), "any";
    }

    /// Clients whose packets to VIPs with the flag `src-routing` go to a real of their own; needs the feature `source-routing`.
    SOURCE_ROUTE = "source_route" as "[[source_route]]" {
        /// The addresses of the clients; the longest prefix counts.
        prefix: "prefix", NEEDED, "an IPv4 or IPv6 prefix";
        /// The address of the real.
        real: "address", NEEDED, "an address as of a real";
    }

    /// An address at which tunnels end; needs the feature `inline-decap`.
    DECAP = "decap" as "[[decap]]" {
        /// The destination of the tunnel's packets.
        address: "address", NEEDED, "an IPv4 or IPv6 address of one host";
        /// What becomes of the packets that were in the tunnel: `inline` ones are handled as clients' packets are, `egress` ones are sent out.
        mode: "choice", NEEDED, "`inline` or `egress`";
    }

    /// A mark of this host's packets (`SO_MARK`) that makes them probes of a real.
    MARK = "mark" as "[[mark]]" {
        /// The mark.
        mark: "number", NEEDED, "1 to 4,294,967,295";
        /// The address of the real.
        real: "address", NEEDED, "an address as of a real";
    }

    /// A destination of this host's packets that makes them probes of a real.
    PROBE_DESTINATION = "probe_destination" as "[[probe_destination]]" {
        /// The destination.
        address: "address", NEEDED, "an IPv4 or IPv6 address";
        /// Its port.
        port: "TCP or UDP port", Some("0, any"), "0 to 65,535, 0 for any";
        /// The address of the real.
        real: "address", NEEDED, "an address as of a real";
    }

    /// A source of this host's packets that makes them probes of a real.
    PROBE_SOURCE = "probe_source" as "[[probe_source]]" {
        /// The source.
        address: "address", NEEDED, "an IPv4 or IPv6 address";
        /// Its port.
        port: "TCP or UDP port", Some("0, any"), "0 to 65,535, 0 for any";
        /// The address of the real.
        real: "address", NEEDED, "an address as of a real";
    }

    /// A VIP whose probes are counted.
    PROBE = "probe" as "[[probe]]" {
        /// The address of the VIP.
        address: "address", NEEDED, "an IPv4 or IPv6 address";
        /// Its port.
        port: "TCP or UDP port", NEEDED, "0 to 65,535";
        /// Its protocol.
        protocol: "choice", NEEDED, "`tcp` or `udp`";
    }
}

/// The section, and the key of VIPs and reals, of health checks; another module reads them.
pub(super) const HEALTH: &str = "health";

/// Whether it stands in a document as tables of its own.
pub(super) fn is_section(name: &str) -> bool {
    name != REAL.name && SECTIONS.iter().any(|section| section.name == name)
}

/// The only place where a key can stand.
pub(super) fn owner(key: &str) -> Option<&'static str> {
    if SETTING_KEYS.contains(&key) {
        return Some("[balancer]");
    }
    let mut owners = SECTIONS.iter().filter(|section| section.has(key));
    let owner = owners.next()?;
    owners.next().is_none().then_some(owner.title)
}

/// The keys that can stand in one place only.
pub(super) fn owned_keys() -> impl Iterator<Item = &'static str> {
    let keys = SECTIONS.iter().flat_map(|section| section.key_names());
    let keys = SETTING_KEYS.iter().copied().chain(keys);
    keys.filter(|key| owner(key).is_some())
}
