//! The ends of TCP connections that are routed by server id: a sockops program that puts the id
//! into an option of the packets, so that servers and clients need no change.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use libbpf_rs::skel::OpenSkel;

use crate::attach::Attached;
use crate::attach::Attachments;
use crate::attach::CgroupAttachment;
use crate::attach::CgroupLink;
use crate::attach::put_back;
use crate::environment;
use crate::error::Result;
use crate::kernel;
use crate::kernel::kernel_error;
use crate::kernel::load_error;
use crate::pins::Home;
use crate::skel::server_id::ServerIdSkelBuilder;
use crate::skel::server_id::types::server_id_connection;
use crate::skel::server_id::types::server_id_counters;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::mapping::Mapping;
use crate::sys::object;
use crate::sys::object::numbered;
use crate::types::check_server_id;

/// Puts server ids into TCP packets, for the balancer's
/// [`Features::TCP_SERVER_ID`](crate::Features::TCP_SERVER_ID): a program for the sockets of a
/// cgroup. Dropping it detaches it, unless it is [pinned](Self::pin); connections then continue
/// without the option.
///
/// A server's end writes its id into the packets of the connections that it accepts, from the
/// SYN-ACK on, until the client has sent it back once. (For sockets that listened before it was
/// attached, it begins with the next packet.) A client's end repeats the id that it received in all
/// packets of that connection. The option takes 6 bytes, 8 with padding, of TCP's 40; packets
/// without room for it go without. Balancers route by what the client sends, so both ends are
/// needed: the second in clients, or in the proxies that connect for them.
///
/// A server writes option kind 0xB6 and a client 0xB7, as Katran's ends have since 2023; both have
/// length 6, followed by the id, little-endian. Balancers read 0xB7.
///
/// Several servers on one host each need a `ServerIdOption` with a different id, attached to the
/// server's cgroup.
///
/// ```no_run
/// use katran::ServerIdOption;
///
/// let mut server = ServerIdOption::server(1000)?;
/// server.attach("/sys/fs/cgroup/system.slice/nginx.service")?;
/// # Ok::<(), katran::Error>(())
/// ```
#[must_use = "the program is gone when its handle is dropped, unless it is pinned"]
pub struct ServerIdOption {
    attachments: Attachments<CgroupLink>,
    counters: PerCpuArray<server_id_counters>,
    connections: Typed<u32, server_id_connection>,
    own: OwnedFd,
    /// The id in that map.
    own_id: Mapping,
    program: OwnedFd,
    /// Where it is pinned. Last, because dropping it admits the next owner.
    home: Option<Home>,
}

/// The counters of a [`ServerIdOption`] since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ServerIdOptionCounters {
    /// Connections that a server's end has accepted.
    pub served: u64,
    /// Connections whose client's end has received an id.
    pub heard: u64,
    /// Packets that the option was written into; one that is segmented later counts once.
    pub written: u64,
}

/// # Loading, ids and cgroups
impl ServerIdOption {
    /// Loads a server's end, which writes this id: 1 to 4,294,967,295, as in
    /// [`ServerId`](crate::ServerId). It is also a client's end, for connections that the same
    /// cgroup opens.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for id 0;
    /// [`Error::KernelTooOld`](crate::Error::KernelTooOld),
    /// [`Error::BpfUnavailable`](crate::Error::BpfUnavailable),
    /// [`Error::Privilege`](crate::Error::Privilege); [`Error::Verifier`](crate::Error::Verifier)
    /// if the kernel rejects the program; [`Error::Kernel`](crate::Error::Kernel).
    pub fn server(id: u32) -> Result<Self> {
        check_server_id(id)?;
        Self::load(id)
    }

    /// Loads a client's end, which repeats ids.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub fn client() -> Result<Self> {
        Self::load(0)
    }

    fn load(own_id: u32) -> Result<Self> {
        let option = Self::load_over(|_| Ok(None))?;
        option.write_own_id(own_id);
        Ok(option)
    }

    /// Loads the program over existing maps: a map's descriptor, by its name.
    fn load_over(there: impl Fn(&str) -> Result<Option<OwnedFd>>) -> Result<Self> {
        environment::check_kernel()?;
        let mut storage = MaybeUninit::uninit();
        let mut open = kernel::open(ServerIdSkelBuilder::default(), &mut storage)?;
        for mut map in open.open_object_mut().maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            if let Some(fd) = there(&name)? {
                numbered(|| map.reuse_fd(fd.as_fd()))
                    .map_err(|error| kernel_error("reuse the map", &name, error))?;
            }
        }
        let skel = object::load(open, &["server_id"])
            .map_err(|refused| load_error("server_id", refused))?;
        let take_over = || -> io::Result<_> {
            let counters = skel.maps.server_id_counters.as_fd().try_clone_to_owned()?;
            let connections = skel.maps.connections.as_fd().try_clone_to_owned()?;
            let own = skel.maps.data_own.as_fd().try_clone_to_owned()?;
            Ok(Self {
                attachments: Attachments::default(),
                counters: PerCpuArray::new(counters)?,
                connections: Typed::new(connections)?,
                own_id: Mapping::new(own.as_fd(), size_of::<u32>())?,
                own,
                program: skel.progs.server_id.as_fd().try_clone_to_owned()?,
                home: None,
            })
        };
        take_over().map_err(|error| kernel_error("open", "server_id", error))
    }

    /// Changes the server's id, 1 to 4,294,967,295: connections that it accepts from now on carry
    /// it. Open connections keep the old one, so leave that in the balancers' tables until they
    /// have ended. A client's end becomes a server's, too.
    ///
    /// A [`Decap`](crate::Decap) on this host does not learn of the change: it counts packets with
    /// the new id as another server's until you reload it with that id
    /// ([`DecapBuilder::server_id`](crate::DecapBuilder::server_id)).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for id 0.
    #[doc(alias = "updateServerInfo")]
    pub fn set_id(&mut self, id: u32) -> Result<()> {
        check_server_id(id)?;
        self.write_own_id(id);
        Ok(())
    }

    /// The id that the server's end writes; `None`: it is only a client's end.
    pub fn id(&self) -> Option<u32> {
        let [word] = self.own_id.u32s() else {
            return None;
        };
        Some(word.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    /// The id that a client's TCP socket has learned from its server and repeats. `None` if it has
    /// learned none, for the socket of a server's end, and for sockets outside the attached
    /// cgroups.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel), also if it is not a socket.
    pub fn learned_id(&self, socket: impl AsFd) -> Result<Option<u32>> {
        let descriptor = socket.as_fd().as_raw_fd().unsigned_abs();
        let kept = self.connections.lookup(&descriptor);
        let kept =
            kept.map_err(|error| kernel_error("read", "the server id of a socket", error))?;
        Ok(kept.filter(|kept| kept.server == 0).map(|kept| kept.id))
    }

    fn write_own_id(&self, id: u32) {
        if let [word] = self.own_id.u32s() {
            word.store(id, Ordering::Relaxed);
        }
    }

    /// Attaches to a cgroup (version 2) by the path of its directory: for sockets that its
    /// processes, and those of cgroups below it, create. Other programs there stay. It replaces an
    /// attachment to an earlier cgroup of that path that is gone.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) if it is attached there;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the path is not a cgroup of version 2;
    /// [`Error::Privilege`](crate::Error::Privilege); [`Error::Kernel`](crate::Error::Kernel), also
    /// if there is no such directory.
    pub fn attach(&mut self, cgroup: impl AsRef<Path>) -> Result<()> {
        let keep_in = self.home.as_ref().map(Home::attached);
        self.attachments
            .attach(cgroup.as_ref(), self.program.as_fd(), keep_in)
    }

    /// Attaches again what is gone
    /// ([`AttachmentState::Gone`](crate::attachments::AttachmentState::Gone)), where a cgroup of
    /// that path exists again: removing a cgroup, as restarting a service does, removes its
    /// attachment.
    ///
    /// # Errors
    /// As [`attach`](Self::attach): the first failure, after the library has tried all.
    pub fn reattach(&mut self) -> Result<()> {
        let lost = self.attachments.lost().into_iter();
        put_back(lost.map(|path| self.attach(path)))
    }

    /// Detaches from one cgroup, by the path of its directory.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if it is not attached there;
    /// [`Error::Kernel`](crate::Error::Kernel) if its pin cannot be removed.
    pub fn detach(&mut self, cgroup: impl AsRef<Path>) -> Result<()> {
        self.attachments.detach(cgroup.as_ref())
    }

    /// The cgroups it was attached to, in the order of attaching, each with what the kernel reports
    /// about it.
    pub fn cgroups(&self) -> Vec<CgroupAttachment> {
        self.attachments.list()
    }

    /// The counters since it was loaded.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel).
    pub fn counters(&self) -> Result<ServerIdOptionCounters> {
        let values = self
            .counters
            .get(0)
            .map_err(|error| kernel_error("read", "server_id_counters", error))?;
        let mut sum = ServerIdOptionCounters::default();
        for value in &values {
            sum.served += value.served;
            sum.heard += value.heard;
            sum.written += value.written;
        }
        Ok(sum)
    }
}

// Here, so that its methods follow these in the documentation.
mod pinned;

impl fmt::Debug for ServerIdOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroups: Vec<_> = self.attachments.iter().map(Attached::asked).collect();
        f.debug_struct("ServerIdOption")
            .field("cgroups", &cgroups)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
