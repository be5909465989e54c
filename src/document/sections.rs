//! The sections of a document and their keys, for the reader and for `docs/configuration.md`. The
//! keys of `[balancer]` are in the table of settings (`config/settings.rs`).

use crate::config::SETTING_KEYS;

/// A section that may occur many times, or the reals of a VIP.
pub(crate) struct Section {
    /// Its name in the document.
    pub(crate) name: &'static str,
    /// Its name in errors and in the reference.
    pub(crate) title: &'static str,
    #[cfg(test)]
    pub(crate) meaning: &'static str,
    pub(crate) own: &'static [Key],
    /// Keys that other sections have too.
    pub(crate) shared: &'static [&'static [Key]],
}

/// A key of a section.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    #[cfg(test)]
    pub(crate) meaning: &'static str,
    #[cfg(test)]
    pub(crate) unit: &'static str,
    /// The default; `None` if the key is required.
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
    )*) => {
        &[$(Key {
            name: stringify!($key),
            #[cfg(test)]
            meaning: concat!($($meaning),+),
            #[cfg(test)]
            unit: $unit,
            #[cfg(test)]
            default: $default,
            range: $range,
        }),*]
    };
}

macro_rules! sections {
    ($(
        $(#[doc = $doc:literal])+
        $constant:ident = $name:literal as $title:literal {$($rows:tt)*} $(with $($shared:ident),+)?
    )+) => {
        $(pub(super) const $constant: Section = Section {
            name: $name,
            title: $title,
            #[cfg(test)]
            meaning: concat!($($doc),+),
            own: key_rows! { $($rows)* },
            shared: &[$($($shared),+)?],
        };)+

        /// All sections, in the order of writing.
        pub(super) const SECTIONS: &[&Section] = &[$(&$constant),+];
    };
}

#[cfg(feature = "health")]
pub(crate) use key_rows;
#[cfg(feature = "health")]
pub(crate) use sections;

#[cfg(test)]
pub(crate) const NEEDED: Option<&str> = None;

/// Keys of probe matches.
const MATCH_KEYS: &[Key] = key_rows! {
    /// The address.
    address: "address", NEEDED, "an IPv4 or IPv6 address";
    /// Its port.
    port: "port", Some("0"), "0 to 65,535, 0 for any";
    /// The real.
    real: "address", NEEDED, "the address of a real";
};

sections! {
    /// A service that clients connect to.
    VIP = "vip" as "[[vip]]" {
        /// The service's address, or the first address of its prefix.
        address: "address", NEEDED,
            "an IPv4 or IPv6 address; not unspecified (except for a prefix), multicast, broadcast or loopback";
        /// Makes the VIP a prefix; the longest prefix wins.
        prefix_length: "bits", Some("32 for IPv4, 128 for IPv6"), "0 to 32 for IPv4, 0 to 128 for IPv6";
        /// The service's port; 0 covers all ports without their own VIP.
        port: "port", NEEDED, "0 to 65,535, 0 for any";
        /// The service's protocol.
        protocol: "choice", NEEDED, "`tcp` or `udp`";
        /// How packets are routed; see [flags](#flags-of-a-vip).
        flags: "flags", Some("none"), "a list of flags; `quic` only with `udp`";
        /// How the ring is filled.
        hash: "choice", Some("as `hash_function`"), "`maglev` or `maglev-v2`";
        /// The backends: `reals = [ { address = "198.51.100.1" } ]`.
        reals: "list", Some("none"), "a list of reals";
        /// [Health checks](health.md) of its reals.
        health: "table", Some("`[health]`"), "a table";
    }

    /// A backend of a VIP. In all of its VIPs, a real must have the same `local` and
    /// `application_flags`.
    REAL = "reals" as "a real" {
        /// The backend's address.
        address: "address", NEEDED,
            "an IPv4 or IPv6 address; not unspecified, multicast, broadcast, loopback or link-local";
        /// Its share of new flows, relative to the VIP's other reals; 0 drains it.
        weight: "shares", Some("1"), "0 to 4,294,967,295";
        /// The real is this host: packets of VIPs with the flag `local-vip` stay here.
        local: "boolean", Some("false"), "true or false";
        /// Bits for the host application, which the balancer only stores.
        application_flags: "bits", Some("0"), "a multiple of 4, 0 to 252";
        /// The real gets no packets but those with its server id, as after failed health checks.
        down: "boolean", Some("false"), "true or false";
        /// [Health checks](health.md) of this real.
        health: "table", Some("the VIP's"), "a table";
    }

    /// A number in packets (QUIC, TCP option, stable UDP routing) that names a real.
    SERVER_ID = "server_id" as "[[server_id]]" {
        /// The number.
        id: "number", NEEDED, "1 to 4,294,967,295";
        /// The real.
        real: "address", NEEDED, "the address of a real";
        /// Whether it routes packets.
        valid: "boolean", Some("true"), "true or false";
    }

    /// Sends clients of VIPs with the flag `src-routing` to their own real; needs the feature
    /// `source-routing`.
    SOURCE_ROUTE = "source_route" as "[[source_route]]" {
        /// The clients; the longest prefix wins.
        prefix: "prefix", NEEDED, "an IPv4 or IPv6 prefix";
        /// Their real.
        real: "address", NEEDED, "the address of a real";
    }

    /// An address at which tunnels end; needs the feature `inline-decap`.
    DECAP = "decap" as "[[decap]]" {
        /// The outer destination.
        address: "address", NEEDED, "an IPv4 or IPv6 address of one host";
        /// `inline` treats the inner packets as clients' packets, `egress` sends them out.
        mode: "choice", NEEDED, "`inline` or `egress`";
    }

    /// Packets that this host sends with this mark are probes of the real.
    MARK = "mark" as "[[mark]]" {
        /// The socket mark.
        mark: "number", NEEDED, "1 to 4,294,967,295";
        /// The real.
        real: "address", NEEDED, "the address of a real";
    }

    /// Packets that this host sends to this address are probes of the real.
    PROBE_DESTINATION = "probe_destination" as "[[probe_destination]]" {
    } with MATCH_KEYS

    /// Packets that this host sends from this address are probes of the real.
    PROBE_SOURCE = "probe_source" as "[[probe_source]]" {
    } with MATCH_KEYS

    /// A VIP whose probes are counted.
    PROBE = "probe" as "[[probe]]" {
        /// The VIP's address.
        address: "address", NEEDED, "an IPv4 or IPv6 address";
        /// Its port.
        port: "port", NEEDED, "0 to 65,535";
        /// Its protocol.
        protocol: "choice", NEEDED, "`tcp` or `udp`";
    }
}

/// The section of health checks, and the key of VIPs and reals; another module reads them.
pub(super) const HEALTH: &str = "health";

/// Whether a document has it as tables of that name.
pub(super) fn is_section(name: &str) -> bool {
    name != REAL.name && SECTIONS.iter().any(|section| section.name == name)
}

/// The section of a key that only one section has.
pub(super) fn owner(key: &str) -> Option<&'static str> {
    if SETTING_KEYS.contains(&key) {
        return Some("[balancer]");
    }
    let mut owners = SECTIONS.iter().filter(|section| section.has(key));
    let owner = owners.next()?;
    owners.next().is_none().then_some(owner.title)
}

/// The keys that only one section has.
pub(super) fn owned_keys() -> impl Iterator<Item = &'static str> {
    let keys = SECTIONS.iter().flat_map(|section| section.key_names());
    let keys = SETTING_KEYS.iter().copied().chain(keys);
    keys.filter(|key| owner(key).is_some())
}
