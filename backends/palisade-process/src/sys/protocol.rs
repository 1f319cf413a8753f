//! What host and worker say to each other. Shared by both: the worker includes this file.
//!
//! Integers are little-endian. The host trusts the zygote, which runs no guest code; it trusts nothing an instance says
//! once guest code runs in it.

/// Everything the zygote needs to build a jail, and its instances to lock themselves in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// User and group to become before anything else; `None`: already an ordinary user.
    pub(crate) become_id: Option<u32>,
    /// User and group shown inside the jail.
    pub(crate) inner_id: u32,
    /// Size of the private root file system, in bytes.
    pub(crate) root_bytes: u64,
    /// What the root shows, in this order.
    pub(crate) mounts: Vec<Mount>,
    /// Libraries to have loaded before the root is left, so that guests' dependencies are there.
    pub(crate) preload: Vec<String>,
    /// What an instance runs.
    pub(crate) program: Program,
    /// `NAME=value` of the guest's environment.
    pub(crate) environment: Vec<String>,
    /// Resource limits: number and value (soft and hard).
    pub(crate) limits: Vec<(u32, u64)>,
    /// Landlock: handled file-system rights, handled network rights, scopes.
    pub(crate) landlock: [u64; 3],
    /// Landlock: what is allowed beneath which path.
    pub(crate) landlock_rules: Vec<(String, u64)>,
    /// System call filter: array of `sock_filter`.
    pub(crate) filter: Vec<u8>,
    /// Second filter, installed once a shared library is loaded. Empty: none.
    pub(crate) filter_locked: Vec<u8>,
    /// Make the CPU's time stamp counter unreadable.
    pub(crate) trap_tsc: bool,
    /// Give each instance a user namespace of its own, so that its processes are counted apart.
    pub(crate) own_user_namespace: bool,
    /// Memory may be written and executed.
    pub(crate) makes_code: bool,
    /// The program may call host functions.
    pub(crate) host_calls: bool,
    /// Protections to leave out, one bit each; only in builds made to show what the suite notices.
    pub(crate) ablated: u32,
}

/// Something to show in the private root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mount {
    /// A file or device of the host. Read-only unless it is a device.
    File { source: String, target: String, device: bool },
    /// A directory of the host, which must still be the one with this device and inode number.
    Directory {
        source: String,
        target: String,
        writable: bool,
        executable: bool,
        device: u64,
        inode: u64,
        /// User and group of the host in whose place the guest's own stand in this directory, and who own what it makes.
        owners: Option<(u32, u32)>,
    },
    /// A file with the contents of the descriptor that comes with the plan.
    Program { target: String },
    /// A symbolic link.
    Link { target: String, path: String },
    /// The place at which each instance mounts a file system of its own, of so many bytes.
    Scratch { target: String, bytes: u64 },
}

/// What an instance runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Program {
    /// Executes a file of the private root. `before` are the arguments before those of the call, `argv[0]` first.
    Execute { path: String, before: Vec<String> },
    /// Loads a shared library and serves calls of its functions.
    Library { path: String },
    /// Attacks its jail and reports what worked.
    #[default]
    SelfTest,
}

/// Where the self-test has a directory it may write to.
pub(crate) const SELF_TEST_SCRATCH: &str = "/scratch";

/// Requests to the zygote.
pub(crate) const CREATE: u8 = b'C';

/// Descriptors of an instance, in the order in which they come with a request: standard streams, the worker's two pipes,
/// and those of a program's host calls, or two that are of no use.
pub(crate) const INSTANCE_FDS: usize = 7;
/// Descriptor on which an instance hears the host.
#[cfg_attr(not(palisade_worker), allow(dead_code, reason = "used by the worker"))]
pub(crate) const FD_REQUEST: i32 = 3;
/// Descriptor on which an instance talks to the host.
#[cfg_attr(not(palisade_worker), allow(dead_code, reason = "used by the worker"))]
pub(crate) const FD_REPLY: i32 = 4;
/// Descriptor of the program while it is being executed.
pub(crate) const FD_PROGRAM: i32 = 5;
/// Descriptor on which a program hears the answers to its host calls, when it was granted any.
pub(crate) const FD_ANSWERS: i32 = 7;
/// Descriptor on which a program makes host calls, when it was granted any.
#[cfg_attr(not(palisade_worker), allow(dead_code, reason = "used by the worker"))]
pub(crate) const FD_CALLS: i32 = 8;
/// Descriptor of the Landlock rules while they are being applied.
#[cfg_attr(not(palisade_worker), allow(dead_code, reason = "used by the worker"))]
pub(crate) const FD_RULES: i32 = 6;

/// Descriptor on which the kernel asks about system calls; the host takes it before guest code runs.
pub(crate) const FD_NOTICES: i32 = 9;

/// Frames from an instance: one byte for the kind, four for the length.
pub(crate) const FRAME_HEADER: usize = 5;
/// The jail is complete; no guest code ran yet.
pub(crate) const PARKED: u8 = b'P';
/// Setting up failed: errno and the step's name.
pub(crate) const SETUP_FAILED: u8 = b'E';
/// The library is loaded.
pub(crate) const LOADED: u8 = b'L';
/// The library cannot be loaded: text.
pub(crate) const LOAD_FAILED: u8 = b'F';
/// Output.
pub(crate) const OUTPUT: u8 = b'O';
/// Error text.
pub(crate) const ERROR: u8 = b'X';
/// A log record: level and text.
pub(crate) const LOG: u8 = b'G';
/// A host call: length of the name, name, input.
pub(crate) const HOST_CALL: u8 = b'H';
/// The entry returned: its `i32`, and how much of the input was read, as a `u64`.
pub(crate) const RETURN: u8 = b'R';
/// A signal is about to end the instance: number, and 1 if the stack ran over.
pub(crate) const SIGNAL: u8 = b'S';

/// Frames to an instance: load the library, or execute the program (arguments follow).
pub(crate) const GO: u8 = b'g';
/// Call an entry: length of the name, name, input.
pub(crate) const CALL: u8 = b'c';
/// Answer to a host call: status byte, bytes.
pub(crate) const HOST_RESULT: u8 = b'h';

/// A frame's header.
pub(crate) fn frame_header(kind: u8, len: u32) -> [u8; FRAME_HEADER] {
    let mut header = [kind, 0, 0, 0, 0];
    header[1..].copy_from_slice(&len.to_le_bytes());
    header
}

/// Appends values to a message.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn number(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }
    pub(crate) fn texts(&mut self, texts: &[String]) -> &mut Self {
        self.number(texts.len() as u64);
        for text in texts {
            self.text(text);
        }
        self
    }
}

/// Takes values from a message. `None` when it is malformed.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn number(&mut self) -> Option<u64> {
        let (value, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*value))
    }
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
    pub(crate) fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
    pub(crate) fn texts(&mut self) -> Option<Vec<String>> {
        (0..self.number()?).map(|_| self.text()).collect()
    }
    fn flag(&mut self) -> Option<bool> {
        Some(self.number()? != 0)
    }
}

impl Plan {
    /// Whether each instance has a file system of its own, and so a mount namespace and Landlock rules of its own.
    #[cfg_attr(not(palisade_worker), allow(dead_code, reason = "used by the worker"))]
    pub(crate) fn has_scratch(&self) -> bool {
        self.mounts.iter().any(|mount| matches!(mount, Mount::Scratch { .. }))
    }

    /// The message for this plan.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.number(self.become_id.map_or(u64::MAX, u64::from)).number(self.inner_id.into()).number(self.root_bytes);
        w.number(self.mounts.len() as u64);
        for mount in &self.mounts {
            match mount {
                Mount::File { source, target, device } => {
                    w.number(0).text(source).text(target).number((*device).into());
                }
                Mount::Directory { source, target, writable, executable, device, inode, owners } => {
                    w.number(1).text(source).text(target).number((*writable).into()).number((*executable).into());
                    let (user, group) =
                        owners.map_or((u64::MAX, u64::MAX), |(user, group)| (user.into(), group.into()));
                    w.number(*device).number(*inode).number(user).number(group);
                }
                Mount::Program { target } => {
                    w.number(2).text(target);
                }
                Mount::Scratch { target, bytes } => {
                    w.number(4).text(target).number(*bytes);
                }
                Mount::Link { target, path } => {
                    w.number(3).text(target).text(path);
                }
            }
        }
        w.texts(&self.preload);
        match &self.program {
            Program::Execute { path, before } => {
                w.number(0).text(path).texts(before);
            }
            Program::Library { path } => {
                w.number(1).text(path);
            }
            Program::SelfTest => {
                w.number(2);
            }
        }
        w.texts(&self.environment);
        w.number(self.limits.len() as u64);
        for (resource, value) in &self.limits {
            w.number((*resource).into()).number(*value);
        }
        for rights in self.landlock {
            w.number(rights);
        }
        w.number(self.landlock_rules.len() as u64);
        for (path, rights) in &self.landlock_rules {
            w.text(path).number(*rights);
        }
        w.bytes(&self.filter).bytes(&self.filter_locked);
        w.number(self.trap_tsc.into()).number(self.own_user_namespace.into());
        w.number(self.makes_code.into()).number(self.host_calls.into()).number(self.ablated.into());
        w.0
    }

    /// The plan in `message`, or `None` when it is malformed.
    #[cfg_attr(not(palisade_worker), allow(dead_code, reason = "the worker decodes, the host encodes"))]
    pub(crate) fn decode(message: &[u8]) -> Option<Plan> {
        let mut r = Reader(message);
        let mut plan = Plan {
            become_id: u32::try_from(r.number()?).ok(),
            inner_id: u32::try_from(r.number()?).ok()?,
            root_bytes: r.number()?,
            ..Plan::default()
        };
        for _ in 0..r.number()? {
            plan.mounts.push(match r.number()? {
                0 => Mount::File { source: r.text()?, target: r.text()?, device: r.flag()? },
                1 => Mount::Directory {
                    source: r.text()?,
                    target: r.text()?,
                    writable: r.flag()?,
                    executable: r.flag()?,
                    device: r.number()?,
                    inode: r.number()?,
                    owners: u32::try_from(r.number()?).ok().zip(u32::try_from(r.number()?).ok()),
                },
                2 => Mount::Program { target: r.text()? },
                3 => Mount::Link { target: r.text()?, path: r.text()? },
                4 => Mount::Scratch { target: r.text()?, bytes: r.number()? },
                _ => return None,
            });
        }
        plan.preload = r.texts()?;
        plan.program = match r.number()? {
            0 => Program::Execute { path: r.text()?, before: r.texts()? },
            1 => Program::Library { path: r.text()? },
            2 => Program::SelfTest,
            _ => return None,
        };
        plan.environment = r.texts()?;
        for _ in 0..r.number()? {
            plan.limits.push((u32::try_from(r.number()?).ok()?, r.number()?));
        }
        plan.landlock = [r.number()?, r.number()?, r.number()?];
        for _ in 0..r.number()? {
            plan.landlock_rules.push((r.text()?, r.number()?));
        }
        plan.filter = r.bytes()?.to_vec();
        plan.filter_locked = r.bytes()?.to_vec();
        plan.trap_tsc = r.flag()?;
        plan.own_user_namespace = r.flag()?;
        plan.makes_code = r.flag()?;
        plan.host_calls = r.flag()?;
        plan.ablated = u32::try_from(r.number()?).ok()?;
        r.0.is_empty().then_some(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Plan {
        Plan {
            become_id: Some(65_533),
            inner_id: 1000,
            root_bytes: 4096,
            mounts: vec![
                Mount::File { source: "/a".into(), target: "/b".into(), device: true },
                Mount::Directory {
                    source: "/c".into(),
                    target: "/d".into(),
                    writable: true,
                    executable: false,
                    device: 1,
                    inode: 2,
                    owners: Some((1000, 1001)),
                },
                Mount::Program { target: "/p".into() },
                Mount::Link { target: "usr/lib".into(), path: "/lib".into() },
                Mount::Scratch { target: "/tmp".into(), bytes: 4096 },
            ],
            preload: vec!["libm.so.6".into()],
            program: Program::Execute { path: "/p".into(), before: vec!["p".into()] },
            environment: vec!["A=B".into()],
            limits: vec![(7, 9)],
            landlock: [1, 2, 3],
            landlock_rules: vec![("/p".into(), 5)],
            filter: vec![1; 16],
            filter_locked: vec![2; 8],
            trap_tsc: true,
            own_user_namespace: true,
            makes_code: true,
            host_calls: true,
            ablated: 1,
        }
    }

    #[test]
    fn plans_round_trip() {
        for program in [Program::SelfTest, Program::Library { path: "/l".into() }, everything().program] {
            let plan = Plan { program, ..everything() };
            assert_eq!(Plan::decode(&plan.encode()), Some(plan));
        }
        assert_eq!(Plan::decode(&Plan::default().encode()), Some(Plan::default()));
    }

    #[test]
    fn a_truncated_plan_is_refused() {
        let message = everything().encode();
        assert!((0..message.len()).all(|len| Plan::decode(&message[..len]).is_none()));
        let mut longer = message.clone();
        longer.push(0);
        assert_eq!(Plan::decode(&longer), None);
    }
}
