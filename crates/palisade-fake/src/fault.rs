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
            ),
            Wrong::All(_) => false,
        }
    }

    pub(crate) fn is(self, universal: Universal) -> bool {
        self == Wrong::All(universal)
    }
}
