//! What can be wrong with the reference backend.

use std::fmt;

macro_rules! faults {
    ($(#[doc = $about:literal])+ pub enum $Fault:ident; $($(#[doc = $doc:literal])+ $name:ident = $text:literal,)*) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $Fault {
            $($(#[doc = $doc])+ $name,)*
        }

        impl $Fault {
            /// Every fault.
            pub const ALL: &[$Fault] = &[$($Fault::$name),*];

            /// The name, as checks write it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($Fault::$name => $text,)*
                }
            }
        }
    };
}

pub(crate) use faults;

faults! {
    /// One thing that is wrong with the backend.
    pub enum Fault;
    /// Output loses its last byte.
    CorruptsOutput = "corrupts-output",
    /// Every end by the guest itself counts as success.
    LosesExitCode = "loses-exit-code",
    /// Every trap is reported as of an unknown kind.
    UntypedTrap = "untyped-trap",
    /// Artifacts are not validated.
    AcceptsMalformed = "accepts-malformed",
    /// An entry that does not exist is taken for `_start`.
    RunsAnyEntry = "runs-any-entry",
    /// Imports that nothing provides do nothing.
    StubsImports = "stubs-imports",
    /// What is not declared is accepted.
    AcceptsUndeclared = "accepts-undeclared",
    /// A token that is cancelled before the call is not looked at.
    IgnoresCancelBefore = "ignores-cancel-before",
    /// A token is not looked at while guest code runs.
    IgnoresCancelRunning = "ignores-cancel-running",
    /// A token is not looked at while the start function runs.
    IgnoresCancelStart = "ignores-cancel-start",
    /// A token is not looked at while a host function runs.
    IgnoresCancelHostCall = "ignores-cancel-host-call",
    /// A token is not looked at while the guest waits for input.
    IgnoresCancelInput = "ignores-cancel-input",
    /// A token that was cancelled late ends the next call.
    StaleCancel = "stale-cancel",
    /// The host function of a dropped call is kept.
    KeepsDroppedCalls = "keeps-dropped-calls",
    /// A loop goes on when its call is dropped.
    SpinsAfterDrop = "spins-after-drop",
    /// An instance goes on after an abnormal end.
    RevivesInstances = "revives-instances",
    /// The error of a host function looks like its result.
    HidesHostErrors = "hides-host-errors",
    /// A panic of a host function looks like its result.
    HidesHostPanics = "hides-host-panics",
    /// Every host function may be called.
    GrantsAllFunctions = "grants-all-functions",
    /// The reported peak of memory is half the true one.
    UnderstatesMemory = "understates-memory",
    /// Fuel depends on chance.
    RandomFuel = "random-fuel",
    /// CPU time is always zero.
    NoCpuTime = "no-cpu-time",
    /// Some calls leave a file open.
    LeaksFiles = "leaks-files",
    /// What one guest exhausts ends the others that run at that moment.
    DisturbsNeighbours = "disturbs-neighbours",
    /// Wall time does not stop a loop.
    NoDeadlineRunning = "no-deadline-running",
    /// Wall time does not stop a start function.
    NoDeadlineStart = "no-deadline-start",
    /// Wall time does not stop a sleep.
    NoDeadlineSleep = "no-deadline-sleep",
    /// Wall time does not stop a host function.
    NoDeadlineHostCall = "no-deadline-host-call",
    /// Wall time does not stop waiting for input.
    NoDeadlineInput = "no-deadline-input",
    /// CPU time is not bounded.
    IgnoresCpuTime = "ignores-cpu-time",
    /// Fuel is not bounded.
    IgnoresFuel = "ignores-fuel",
    /// Memory a module starts with is not counted.
    IgnoresInitialMemory = "ignores-initial-memory",
    /// Memory a guest grows is not counted.
    IgnoresGrownMemory = "ignores-grown-memory",
    /// Tables are not counted.
    IgnoresTables = "ignores-tables",
    /// What the host holds for a guest is not counted.
    IgnoresHostBuffers = "ignores-host-buffers",
    /// The stack is not bounded.
    IgnoresStack = "ignores-stack",
    /// Output is not bounded.
    IgnoresOutput = "ignores-output",
    /// Error text is not bounded.
    IgnoresErrorText = "ignores-error-text",
    /// Log records are not bounded.
    IgnoresLog = "ignores-log",
    /// Calls of host functions are not bounded.
    IgnoresHostCalls = "ignores-host-calls",
    /// Open files are not bounded.
    IgnoresOpenFiles = "ignores-open-files",
    /// The disk is not bounded.
    IgnoresDisk = "ignores-disk",
    /// Exact bounds allow one less than they say.
    OneTooFew = "one-too-few",
    /// Quotas of one call go on in the next.
    NeverResets = "never-resets",
    /// When one guest exhausts a quota, so has every later one.
    SpreadsExhaustion = "spreads-exhaustion",
    /// `..` leads out of a granted directory.
    FollowsParent = "follows-parent",
    /// Absolute paths are paths of the host.
    OpensAbsolute = "opens-absolute",
    /// Symbolic links to files are followed wherever they lead.
    FollowsFileLinks = "follows-file-links",
    /// Symbolic links to directories are followed wherever they lead.
    FollowsDirectoryLinks = "follows-directory-links",
    /// Files of read-only directories may be written.
    WritesReadOnly = "writes-read-only",
    /// Entries of read-only directories may be made, removed and renamed.
    ChangesReadOnly = "changes-read-only",
    /// Files of read-only directories may be linked to elsewhere.
    LinksReadOnly = "links-read-only",
    /// The environment of the host is visible.
    LeaksEnvironment = "leaks-environment",
    /// Arguments of earlier calls are visible.
    LeaksArguments = "leaks-arguments",
    /// A new instance gets the memory of an old one.
    LeaksMemory = "leaks-memory",
    /// A new instance gets the globals of an old one.
    LeaksGlobals = "leaks-globals",
    /// A new instance gets the tables of an old one.
    LeaksTables = "leaks-tables",
    /// Clocks are always fine.
    FineClocks = "fine-clocks",
    /// The seed of randomness is not used.
    IgnoresSeed = "ignores-seed",
    /// Secure randomness is always the same.
    PredictableRandomness = "predictable-randomness",
    /// Sockets work without a grant.
    OpensSockets = "opens-sockets",
    /// More instances are made than declared.
    IgnoresInstances = "ignores-instances",
    /// Grants of one module reach the next.
    MixesAgents = "mixes-agents",
    /// Start functions run when a module is loaded.
    StartsWhenLoaded = "starts-when-loaded",
    /// Start functions run when an instance is made.
    StartsWhenMade = "starts-when-made",
    /// A module does not work without its artifact.
    NeedsArtifact = "needs-artifact",
    /// Sinks get the latest piece first.
    MixesUpSinks = "mixes-up-sinks",
    /// What is declared changes when a guest traps.
    ChangesCapabilities = "changes-capabilities",
    /// Arguments may have NUL bytes.
    AcceptsNul = "accepts-nul",
    /// `_initialize` is not called.
    SkipsInitialize = "skips-initialize",
    /// A cookie beyond the end of a directory means its beginning.
    WrapsCookies = "wraps-cookies",
    /// Blocks may be nested as deep as they like.
    AcceptsDeepNesting = "accepts-deep-nesting",
    /// An instance goes on after a quota ended it.
    RevivesAfterExhaustion = "revives-after-exhaustion",
    /// An instance goes on after it was cancelled.
    RevivesAfterBeingStopped = "revives-after-being-stopped",
    /// An instance goes on after a host function panicked.
    RevivesAfterPanics = "revives-after-panics",
    /// An instance goes on after it was denied something.
    RevivesAfterDenials = "revives-after-denials",
    /// Grants of host functions that are not offered are forgotten.
    GrantsUnknownFunctions = "grants-unknown-functions",
    /// The last result of a host function can be read in the next call.
    KeepsHostResults = "keeps-host-results",
    /// The host goes round while a guest sleeps.
    BusySleep = "busy-sleep",
    /// The host goes round while a guest waits for input.
    BusyInput = "busy-input",
    /// The host goes round while a guest waits for a host function.
    BusyHostCall = "busy-host-call",
    /// Input is not measured.
    NoInputUsage = "no-input-usage",
    /// Output is not measured.
    NoOutputUsage = "no-output-usage",
    /// Log and error text are not measured.
    NoLogUsage = "no-log-usage",
    /// Open files are not measured.
    NoOpenFilesUsage = "no-open-files-usage",
    /// What is written to the disk is not measured.
    NoDiskUsage = "no-disk-usage",
    /// Host calls are not measured.
    NoHostCallsUsage = "no-host-calls-usage",
    /// Wall time does not stop a call of an import that takes long.
    NoDeadlineInLongCalls = "no-deadline-in-long-calls",
    /// Wall time does not stop a guest that calls imports without end.
    NoDeadlineBetweenCalls = "no-deadline-between-calls",
    /// Fuel of start functions is not bounded.
    IgnoresFuelStart = "ignores-fuel-start",
    /// What is passed to host functions is not counted.
    IgnoresHostInput = "ignores-host-input",
    /// Output that goes to a sink is not bounded.
    IgnoresOutputOfSinks = "ignores-output-of-sinks",
    /// Log and error text that go to a sink are not bounded.
    IgnoresLogOfSinks = "ignores-log-of-sinks",
    /// Host calls of one call count in the next.
    NeverResetsHostCalls = "never-resets-host-calls",
    /// New entries of directories are not charged.
    MakesEntriesForNothing = "makes-entries-for-nothing",
    /// Granted directories are looked up by their paths again and again.
    OpensLate = "opens-late",
    /// File systems of the kernel may be granted.
    GrantsSpecialDirectories = "grants-special-directories",
    /// File systems of the kernel are reached below a grant.
    FollowsIntoSpecialDirectories = "follows-into-special-directories",
    /// Steps of clocks are a second at most.
    ShortensLongSteps = "shortens-long-steps",
    /// Output of native programs loses its last byte.
    NativeCorruptsOutput = "native-corrupts-output",
    /// A native program gets all arguments but the last.
    NativeLosesArguments = "native-loses-arguments",
    /// Every native program ends with success.
    NativeLosesExitCode = "native-loses-exit-code",
    /// Faults of native programs are reported as of an unknown kind.
    NativeUntypedFault = "native-untyped-fault",
    /// A forbidden system call is reported as of an unknown kind.
    NativeUntypedDenial = "native-untyped-denial",
    /// The attack `read-file` works.
    NativeReadFile = "native-read-file",
    /// The attack `read-file-upwards` works.
    NativeReadFileUpwards = "native-read-file-upwards",
    /// The attack `stat-file` works.
    NativeStatFile = "native-stat-file",
    /// The attack `list-root` works.
    NativeListRoot = "native-list-root",
    /// The attack `read-proc` works.
    NativeReadProc = "native-read-proc",
    /// The attack `read-own-memory-file` works.
    NativeReadOwnMemoryFile = "native-read-own-memory-file",
    /// The attack `write-file` works.
    NativeWriteFile = "native-write-file",
    /// The attack `make-directory` works.
    NativeMakeDirectory = "native-make-directory",
    /// The attack `remove-file` works.
    NativeRemoveFile = "native-remove-file",
    /// The attack `change-mode` works.
    NativeChangeMode = "native-change-mode",
    /// The attack `file-handle` works.
    NativeFileHandle = "native-file-handle",
    /// The attack `execute-file` works.
    NativeExecuteFile = "native-execute-file",
    /// The attack `inherited-descriptors` works.
    NativeInheritedDescriptors = "native-inherited-descriptors",
    /// The attack `environment` works.
    NativeEnvironment = "native-environment",
    /// The attack `host-name` works.
    NativeHostName = "native-host-name",
    /// The attack `system-information` works.
    NativeSystemInformation = "native-system-information",
    /// The attack `ptrace` works.
    NativePtrace = "native-ptrace",
    /// The attack `read-process-memory` works.
    NativeReadProcessMemory = "native-read-process-memory",
    /// The attack `user-namespace` works.
    NativeUserNamespace = "native-user-namespace",
    /// The attack `io-uring` works.
    NativeIoUring = "native-io-uring",
    /// The attack `personality` works.
    NativePersonality = "native-personality",
    /// The attack `keyring` works.
    NativeKeyring = "native-keyring",
    /// The attack `userfaultfd` works.
    NativeUserfaultfd = "native-userfaultfd",
    /// The attack `change-user` works.
    NativeChangeUser = "native-change-user",
    /// The attack `own-filter` works.
    NativeOwnFilter = "native-own-filter",
    /// The attack `other-architecture` works.
    NativeOtherArchitecture = "native-other-architecture",
    /// The attack `device-control` works.
    NativeDeviceControl = "native-device-control",
    /// The attack `outlive-host` works.
    NativeOutliveHost = "native-outlive-host",
    /// The attack `become-dumpable` works.
    NativeBecomeDumpable = "native-become-dumpable",
    /// The attack `set-limit` works.
    NativeSetLimit = "native-set-limit",
    /// The attack `capability` works.
    NativeCapability = "native-capability",
    /// The attack `find-shared-memory` works.
    NativeFindSharedMemory = "native-find-shared-memory",
    /// The attack `choose-processor` works.
    NativeChooseProcessor = "native-choose-processor",
    /// The attack `writable-code` works.
    NativeWritableCode = "native-writable-code",
    /// The attack `make-executable` works.
    NativeMakeExecutable = "native-make-executable",
    /// The attack `replace-program` works.
    NativeReplaceProgram = "native-replace-program",
    /// The attack `memfd` works.
    NativeMemfd = "native-memfd",
    /// The attack `pipe` works.
    NativePipe = "native-pipe",
    /// The attack `eventfd` works.
    NativeEventfd = "native-eventfd",
    /// The attack `epoll` works.
    NativeEpoll = "native-epoll",
    /// The attack `inotify` works.
    NativeInotify = "native-inotify",
    /// The attack `timerfd` works.
    NativeTimerfd = "native-timerfd",
    /// The attack `socket-pair` works.
    NativeSocketPair = "native-socket-pair",
    /// The attack `shared-memory` works.
    NativeSharedMemory = "native-shared-memory",
    /// The attack `message-queue` works.
    NativeMessageQueue = "native-message-queue",
    /// The attack `splice-memory` works.
    NativeSpliceMemory = "native-splice-memory",
    /// The attack `fork` works.
    NativeFork = "native-fork",
    /// The attack `fork-bomb` works.
    NativeForkBomb = "native-fork-bomb",
    /// The attack `thread` works.
    NativeThread = "native-thread",
    /// The attack `signal-host` works.
    NativeSignalHost = "native-signal-host",
    /// The attack `signal-process` works.
    NativeSignalProcess = "native-signal-process",
    /// The attack `limits-of-process` works.
    NativeLimitsOfProcess = "native-limits-of-process",
    /// The attack `clock-of-process` works.
    NativeClockOfProcess = "native-clock-of-process",
    /// The attack `listen` works.
    NativeListen = "native-listen",
    /// The attack `netlink` works.
    NativeNetlink = "native-netlink",
    /// The attack `vsock` works.
    NativeVsock = "native-vsock",
    /// The attack `tcp` works.
    NativeTcp = "native-tcp",
    /// The attack `udp` works.
    NativeUdp = "native-udp",
    /// The attack `unix-socket` works.
    NativeUnixSocket = "native-unix-socket",
    /// The attack `abstract-socket` works.
    NativeAbstractSocket = "native-abstract-socket",
    /// The attack `write-process-memory` works.
    NativeWriteProcessMemory = "native-write-process-memory",
    /// The attack `change-group` works.
    NativeChangeGroup = "native-change-group",
    /// The attack `new-session` works.
    NativeNewSession = "native-new-session",
    /// The attack `set-priority` works.
    NativeSetPriority = "native-set-priority",
    /// The attack `set-disk-priority` works.
    NativeSetDiskPriority = "native-set-disk-priority",
    /// The attack `set-scheduler` works.
    NativeSetScheduler = "native-set-scheduler",
    /// The attack `signalfd` works.
    NativeSignalfd = "native-signalfd",
    /// The attack `timer` works.
    NativeTimer = "native-timer",
    /// The attack `old-message-queue` works.
    NativeOldMessageQueue = "native-old-message-queue",
    /// The attack `semaphore` works.
    NativeSemaphore = "native-semaphore",
    /// The attack `signal-group` works.
    NativeSignalGroup = "native-signal-group",
    /// The attack `signal-all` works.
    NativeSignalAll = "native-signal-all",
    /// The attack `descriptor-of-process` works.
    NativeDescriptorOfProcess = "native-descriptor-of-process",
    /// The attack `write-file` works in a directory granted for reading.
    NativeGrantedWriteFile = "native-granted-write-file",
    /// The attack `make-directory` works in a directory granted for reading.
    NativeGrantedMakeDirectory = "native-granted-make-directory",
    /// The attack `remove-file` works in a directory granted for reading.
    NativeGrantedRemoveFile = "native-granted-remove-file",
    /// The attack `truncate-file` works in a directory granted for reading.
    NativeGrantedTruncateFile = "native-granted-truncate-file",
    /// The attack `change-mode` works in a directory granted for reading.
    NativeGrantedChangeMode = "native-granted-change-mode",
    /// The attack `lock-file` works in a directory granted for reading.
    NativeGrantedLockFile = "native-granted-lock-file",
    /// The attack `lease-file` works in a directory granted for reading.
    NativeGrantedLeaseFile = "native-granted-lease-file",
    /// The attack `rename-file` works in a directory granted for reading.
    NativeGrantedRenameFile = "native-granted-rename-file",
    /// The attack `link-file` works in a directory granted for reading.
    NativeGrantedLinkFile = "native-granted-link-file",
    /// The attack `make-link` works in a directory granted for reading.
    NativeGrantedMakeLink = "native-granted-make-link",
    /// The attack `make-pipe` works in a directory granted for reading.
    NativeGrantedMakePipe = "native-granted-make-pipe",
    /// The attack `set-times` works in a directory granted for reading.
    NativeGrantedSetTimes = "native-granted-set-times",
    /// The attack `lock-record` works in a directory granted for reading.
    NativeGrantedLockRecord = "native-granted-lock-record",
    /// The attack `set-id-chmod` works in a directory granted for writing.
    NativeGrantedSetIdChmod = "native-granted-set-id-chmod",
    /// The attack `set-id-fchmod` works in a directory granted for writing.
    NativeGrantedSetIdFchmod = "native-granted-set-id-fchmod",
    /// The attack `set-id-fchmodat` works in a directory granted for writing.
    NativeGrantedSetIdFchmodat = "native-granted-set-id-fchmodat",
    /// The attack `set-id-fchmodat2` works in a directory granted for writing.
    NativeGrantedSetIdFchmodat2 = "native-granted-set-id-fchmodat2",
    /// The attack `set-id-open` works in a directory granted for writing.
    NativeGrantedSetIdOpen = "native-granted-set-id-open",
    /// The attack `set-id-openat` works in a directory granted for writing.
    NativeGrantedSetIdOpenat = "native-granted-set-id-openat",
    /// The attack `set-id-openat2` works in a directory granted for writing.
    NativeGrantedSetIdOpenat2 = "native-granted-set-id-openat2",
    /// The attack `set-id-creat` works in a directory granted for writing.
    NativeGrantedSetIdCreat = "native-granted-set-id-creat",
    /// The attack `set-id-mknodat` works in a directory granted for writing.
    NativeGrantedSetIdMknodat = "native-granted-set-id-mknodat",
    /// The attack `set-group-id` works in a directory granted for writing, though it says that it was refused.
    NativeGrantedSetGroupId = "native-granted-set-group-id",
    /// The attack `change-owner` works in a directory granted for writing.
    NativeGrantedChangeOwner = "native-granted-change-owner",
    /// File systems of the kernel may be granted to native programs.
    NativeGrantsSpecialDirectories = "native-grants-special-directories",
    /// Native programs reach file systems of the kernel below a grant.
    NativeFollowsIntoSpecialDirectories = "native-follows-into-special-directories",
    /// The host of a program that sleeps goes round all the while.
    NativeBusySleep = "native-busy-sleep",
    /// The host of a program that waits for input goes round all the while.
    NativeBusyInput = "native-busy-input",
    /// What a policy names as interpreter is executed.
    NativeRunsNamedInterpreter = "native-runs-named-interpreter",
    /// A spinning program has no deadline.
    NativeIgnoresWallTime = "native-ignores-wall-time",
    /// A sleeping program has no deadline.
    NativeIgnoresWallTimeSleep = "native-ignores-wall-time-sleep",
    /// A program that closed its streams has no deadline.
    NativeIgnoresWallTimeClosed = "native-ignores-wall-time-closed",
    /// A program that waits for input has no deadline.
    NativeIgnoresWallTimeInput = "native-ignores-wall-time-input",
    /// A spinning program has no bound on CPU time.
    NativeIgnoresCpuTime = "native-ignores-cpu-time",
    /// CPU time in the kernel does not count.
    NativeIgnoresSystemTime = "native-ignores-system-time",
    /// Native programs have all the memory they want.
    NativeIgnoresMemory = "native-ignores-memory",
    /// Shared memory of native programs does not count.
    NativeIgnoresSharedMemory = "native-ignores-shared-memory",
    /// The stack of native programs never ends.
    NativeIgnoresStack = "native-ignores-stack",
    /// Native programs write without bound.
    NativeIgnoresOutput = "native-ignores-output",
    /// Native programs write error text without bound.
    NativeIgnoresLog = "native-ignores-log",
    /// Native programs open one file too many.
    NativeIgnoresOpenFiles = "native-ignores-open-files",
    /// Scratch directories of native programs have no end.
    NativeIgnoresDisk = "native-ignores-disk",
    /// All native programs see one scratch directory.
    NativeSharesScratch = "native-shares-scratch",
    /// CPU time of native programs is not measured.
    NativeNoCpuTime = "native-no-cpu-time",
    /// Half of the peak memory of native programs is reported.
    NativeUnderstatesMemory = "native-understates-memory",
    /// A native program does not hear of a token.
    NativeIgnoresCancel = "native-ignores-cancel",
    /// An instance goes on after a dropped call of a native program.
    NativeKeepsDropped = "native-keeps-dropped",
    /// Each native program leaves a file open.
    NativeLeaksFiles = "native-leaks-files",
    /// Results of native programs name no layers.
    NativeNoLayers = "native-no-layers",
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A backend that is wrong as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Universal {
    /// Refuses every policy.
    Brick,
    /// Refuses nothing and bounds nothing.
    Open,
    /// As `Open`, and declares everything there is.
    Liar,
    /// Loads no artifact.
    LoadsNothing,
}

impl Universal {
    /// Every one.
    pub const ALL: [Universal; 4] = [Universal::Brick, Universal::Open, Universal::Liar, Universal::LoadsNothing];
}

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    Nothing,
    One(Fault),
    All(Universal),
}

impl Wrong {
    pub(crate) fn has(self, fault: Fault) -> bool {
        match self {
            Wrong::Nothing => false,
            Wrong::One(one) => one == fault,
            // These are defects, not something allowed: a backend that allows everything still runs guests rightly.
            Wrong::All(Universal::Open | Universal::Liar) => !matches!(
                fault,
                Fault::CorruptsOutput
                    | Fault::LosesExitCode
                    | Fault::UntypedTrap
                    | Fault::RandomFuel
                    | Fault::NoCpuTime
                    | Fault::UnderstatesMemory
                    | Fault::HidesHostErrors
                    | Fault::HidesHostPanics
                    | Fault::OneTooFew
                    | Fault::NeverResets
                    | Fault::SpreadsExhaustion
                    | Fault::StaleCancel
                    | Fault::StartsWhenLoaded
                    | Fault::StartsWhenMade
                    | Fault::NeedsArtifact
                    | Fault::MixesUpSinks
                    | Fault::ChangesCapabilities
                    | Fault::SkipsInitialize
                    | Fault::NoInputUsage
                    | Fault::NoOutputUsage
                    | Fault::NoLogUsage
                    | Fault::NoOpenFilesUsage
                    | Fault::NoDiskUsage
                    | Fault::NoHostCallsUsage
                    | Fault::NeverResetsHostCalls
                    | Fault::NativeCorruptsOutput
                    | Fault::NativeLosesArguments
                    | Fault::NativeLosesExitCode
                    | Fault::NativeUntypedFault
                    | Fault::NativeUntypedDenial
                    | Fault::NativeNoCpuTime
                    | Fault::NativeUnderstatesMemory
                    | Fault::NativeNoLayers
            ),
            Wrong::All(_) => false,
        }
    }

    /// Whether it has the fault of this name.
    pub(crate) fn has_named(self, name: &str) -> bool {
        Fault::ALL.iter().any(|fault| fault.as_str() == name && self.has(*fault))
    }

    pub(crate) fn is(self, universal: Universal) -> bool {
        self == Wrong::All(universal)
    }
}
