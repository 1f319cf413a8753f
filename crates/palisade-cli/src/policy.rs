//! From a policy file and options to a policy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use palisade::{Access, ArtifactKind, Clocks, DirectoryGrant, Error, ErrorKind, Policy, Randomness, Result, units};

use crate::plugin;

/// Largest policy file.
const POLICY_BYTES_MAX: u64 = 1 << 20;

/// Quota and grants.
#[derive(Debug, Args)]
pub(crate) struct PolicyOptions {
    /// Read quota and grants from a TOML file; the options given here win over it
    #[arg(long, value_name = "FILE", help_heading = "Policy")]
    policy: Option<PathBuf>,

    /// Most time from start to end, waits included [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = limit(units::parse_duration), help_heading = "Quota")]
    wall_time: Option<Limit<Duration>>,
    /// Most time on a CPU
    #[arg(long, value_name = "TIME", value_parser = limit(units::parse_duration), help_heading = "Quota")]
    cpu_time: Option<Limit<Duration>>,
    /// Most instructions, counted deterministically
    #[arg(long, value_name = "COUNT", value_parser = limit(units::parse_count), help_heading = "Quota")]
    fuel: Option<Limit<u64>>,
    /// Most memory [default: 128MiB]
    #[arg(long, value_name = "BYTES", value_parser = limit(units::parse_bytes), help_heading = "Quota")]
    memory: Option<Limit<u64>>,
    /// Largest call stack [default: 512KiB]
    #[arg(long, value_name = "BYTES", value_parser = limit(units::parse_bytes), help_heading = "Quota")]
    stack: Option<Limit<u64>>,
    /// Most standard output [default: 16MiB]
    #[arg(long, value_name = "BYTES", value_parser = limit(units::parse_bytes), help_heading = "Quota")]
    output_limit: Option<Limit<u64>>,
    /// Most standard error and log records [default: 1MiB]
    #[arg(long, value_name = "BYTES", value_parser = limit(units::parse_bytes), help_heading = "Quota")]
    log_limit: Option<Limit<u64>>,
    /// Most files open at once [default: 64]
    #[arg(long, value_name = "COUNT", value_parser = limit(units::parse_count), help_heading = "Quota")]
    open_files: Option<Limit<u64>>,
    /// Most bytes by which files may grow [default: 64MiB]
    #[arg(long, value_name = "BYTES", value_parser = limit(units::parse_bytes), help_heading = "Quota")]
    disk: Option<Limit<u64>>,
    /// Most threads besides the first [default: 0]
    #[arg(long, value_name = "COUNT", value_parser = limit(units::parse_count), help_heading = "Quota")]
    threads: Option<Limit<u64>>,

    /// Let the guest use a directory: HOST::GUEST, read-only unless `:rw` follows. Started as root, name the number of the
    /// user who owns what a native guest makes, unless the directory belongs to somebody else already
    #[arg(long, value_name = "HOST::GUEST[:ro|rw[:USER]]", help_heading = "Grants")]
    dir: Vec<String>,
    /// Give the guest a writable directory of its own at this path, empty at first and gone afterwards, with room for
    /// what --disk allows; native programs only
    #[arg(long, value_name = "PATH", help_heading = "Grants")]
    scratch: Option<String>,
    /// Set an environment variable
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Grants")]
    env: Vec<String>,
    /// Let the guest see clocks of full resolution; native programs and scripts always do
    #[arg(long, help_heading = "Grants")]
    fine_clocks: bool,
    /// Let the guest start child processes, at most this many at once
    #[arg(long, value_name = "COUNT", value_parser = limit(units::parse_count), help_heading = "Grants")]
    processes: Option<Limit<u64>>,
    /// Let the guest make code while it runs, as just-in-time compilers do (node, java, sbcl); native programs only
    #[arg(long, help_heading = "Grants")]
    jit: bool,
    /// Run a script with this interpreter, which the guest sees with its libraries: a name such as python3, or a path
    #[arg(long, value_name = "NAME", help_heading = "Grants")]
    interpreter: Option<String>,
    /// Take randomness from this seed, the same on every run
    #[arg(long, value_name = "NUMBER", help_heading = "Grants")]
    seed: Option<u64>,
}

/// A bound, or none.
#[derive(Debug, Clone, Copy)]
struct Limit<T>(Option<T>);

fn limit<T: Clone + Send + Sync + 'static>(
    parse: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Limit<T>, String> + Clone + Send + Sync {
    move |text| if text == "unlimited" { Ok(Limit(None)) } else { parse(text).map(|value| Limit(Some(value))) }
}

impl PolicyOptions {
    /// Whether an interpreter is asked for, which makes the plugin a script.
    pub(crate) fn names_interpreter(&self) -> bool {
        self.interpreter.is_some()
    }

    /// The interpreter that the person at the command line names by its path, and so lists. One that a policy file names is
    /// the file's word only.
    pub(crate) fn listed_interpreters(&self) -> Vec<PathBuf> {
        self.interpreter.iter().filter(|name| name.contains('/')).map(PathBuf::from).collect()
    }

    /// Whether anything at all is asked for.
    pub(crate) fn is_given(&self) -> bool {
        let limits = [
            self.fuel,
            self.memory,
            self.stack,
            self.output_limit,
            self.log_limit,
            self.open_files,
            self.disk,
            self.threads,
        ];
        let has_limits = limits.iter().any(Option::is_some) || self.wall_time.is_some() || self.cpu_time.is_some();
        let has_grants = !self.dir.is_empty()
            || !self.env.is_empty()
            || self.fine_clocks
            || self.interpreter.is_some()
            || self.scratch.is_some()
            || self.processes.is_some()
            || self.jit
            || self.seed.is_some();
        self.policy.is_some() || has_limits || has_grants
    }

    /// The policy: the file's, or the default one, with the options on top.
    ///
    /// No backend can keep a native program from reading the processor's own clock, so that the default for one is fine
    /// clocks; a policy file is taken at its word.
    pub(crate) fn policy(&self, artifact: ArtifactKind) -> Result<Policy> {
        self.policy_over(None, artifact)
    }

    /// As [`PolicyOptions::policy`], with the options on top of `base` where no file is named.
    pub(crate) fn policy_over(&self, base: Option<Policy>, artifact: ArtifactKind) -> Result<Policy> {
        let has_base = base.is_some();
        let mut policy = match (&self.policy, base) {
            (Some(file), _) => read_policy(file)?,
            (None, base) => base.unwrap_or_default(),
        };
        let quota = &mut policy.quota;
        let set = |target: &mut Option<u64>, option: Option<Limit<u64>>| {
            if let Some(Limit(limit)) = option {
                *target = limit;
            }
        };
        if let Some(Limit(limit)) = self.wall_time {
            quota.wall_time = limit;
        }
        if let Some(Limit(limit)) = self.cpu_time {
            quota.cpu_time = limit;
        }
        set(&mut quota.fuel, self.fuel);
        set(&mut quota.memory_bytes, self.memory);
        set(&mut quota.stack_bytes, self.stack);
        set(&mut quota.output_bytes, self.output_limit);
        set(&mut quota.log_bytes, self.log_limit);
        set(&mut quota.open_files, self.open_files);
        set(&mut quota.disk_bytes, self.disk);
        set(&mut quota.threads, self.threads);
        set(&mut quota.processes, self.processes);
        let grants = &mut policy.grants;
        for text in &self.dir {
            let directory = parse_directory(text)?;
            // One that is shown at the same place is meant, not added.
            if has_base {
                grants.directories.retain(|known| known.guest != directory.guest);
            }
            grants.directories.push(directory);
        }
        for text in &self.env {
            let Some((name, value)) = text.split_once('=') else {
                return Err(Error::new(ErrorKind::InvalidPolicy, "parse", format!("`--env {text}` has no `=`"))
                    .with_help("write `--env NAME=VALUE`; values of this shell are never passed on by themselves"));
            };
            grants.environment.insert(name.to_owned(), value.to_owned());
        }
        let native = matches!(artifact, ArtifactKind::Executable | ArtifactKind::Script);
        if self.fine_clocks || native && self.policy.is_none() && !has_base {
            grants.clocks = Clocks::Fine;
        }
        if self.processes.is_some() {
            grants.child_processes = true;
        }
        grants.executable_memory |= self.jit;
        if let Some(scratch) = &self.scratch {
            grants.scratch = Some(scratch.clone());
        }
        if let Some(interpreter) = &self.interpreter {
            grants.interpreter = Some(interpreter.clone());
        }
        if let Some(seed) = self.seed {
            grants.randomness = Randomness::Seeded(seed);
        }
        policy.validate()?;
        Ok(policy)
    }
}

fn parse_directory(text: &str) -> Result<DirectoryGrant> {
    let invalid = || {
        Error::new(ErrorKind::InvalidPolicy, "parse", format!("`--dir {text}` is not a directory grant"))
            .with_help(
                "write `--dir HOST::GUEST`, with `:rw` at the end when the guest may write, or `:rw:USER` with the number of \
                 the user who owns what it makes",
            )
    };
    let (host, rest) = text.split_once("::").ok_or_else(invalid)?;
    let (rest, owner) = match rest.rsplit_once(':') {
        Some((before, number)) if before.ends_with(":ro") || before.ends_with(":rw") => {
            (before, Some(number.parse().map_err(|_| invalid())?))
        }
        _ => (rest, None),
    };
    let (guest, access) = match rest.rsplit_once(':') {
        Some((guest, "ro")) => (guest, Access::ReadOnly),
        Some((guest, "rw")) => (guest, Access::ReadWrite),
        Some(_) => return Err(invalid()),
        None => (rest, Access::ReadOnly),
    };
    if host.is_empty() || guest.is_empty() {
        return Err(invalid());
    }
    Ok(DirectoryGrant { host: host.into(), guest: guest.to_owned(), access, owner })
}

/// Reads a policy file.
fn read_policy(path: &Path) -> Result<Policy> {
    let bytes = plugin::read_file(path, "parse", POLICY_BYTES_MAX)?;
    let invalid = |message: &str| {
        let message = format!("policy {}: {message}", path.display());
        Error::new(ErrorKind::InvalidPolicy, "parse", message)
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("it is not UTF-8 text"))?;
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1);
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        let result = invalid(&format!("{place}{}", error.message()));
        match nearest_field(error.message()) {
            Some(nearest) => result.with_help(format!("did you mean `{nearest}`?")),
            None => result,
        }
    })
}

/// The known field nearest to the one in serde's message ``unknown field `x`, expected one of `a`, `b` ``.
fn nearest_field(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_only_unless_they_say_otherwise() {
        let parsed = |text: &str| parse_directory(text).unwrap();
        assert_eq!(parsed("/a::/b"), DirectoryGrant::read_only("/a", "/b"));
        assert_eq!(parsed("/a::/b:ro"), DirectoryGrant::read_only("/a", "/b"));
        assert_eq!(parsed("/a::/b:rw"), DirectoryGrant::read_write("/a", "/b"));
        for wrong in ["", "/a", "/a:/b", "::/b", "/a::", "/a::/b:rx", "/a::/b:"] {
            assert!(parse_directory(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn an_unknown_field_is_named_with_the_nearest_known_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        std::fs::write(&path, "[quota]\nwal_time = \"1s\"\n").unwrap();
        let error = read_policy(&path).unwrap_err().to_string();
        assert!(
            error.contains("wal_time") && error.contains("did you mean `wall_time`?") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn hostile_policy_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        let nested = format!("x = {}", "[".repeat(100_000));
        let long = "#".repeat(POLICY_BYTES_MAX as usize + 1);
        for bytes in [
            &b"\xff\xfe"[..],
            b"[quota",
            nested.as_bytes(),
            long.as_bytes(),
            b"[quota]\nfuel = -1",
            b"[quota]\nwall_time = 5",
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(read_policy(&path).is_err(), "{:?} was accepted", &bytes[..bytes.len().min(20)]);
        }
    }

    #[test]
    fn a_policy_file_sets_what_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        let text = r#"
            [quota]
            wall_time = "1500ms"
            memory_bytes = "64MiB"
            fuel = 1000
            log_bytes = "unlimited"
            [grants]
            environment = { A = "b" }
            clocks = "fine"
            [[grants.directories]]
            host = "/srv"
            guest = "/data"
            access = "rw"
        "#;
        std::fs::write(&path, text).unwrap();
        let policy = read_policy(&path).unwrap();
        assert_eq!(policy.quota.wall_time, Some(Duration::from_millis(1500)));
        assert_eq!(
            (policy.quota.memory_bytes, policy.quota.fuel, policy.quota.log_bytes),
            (Some(64 << 20), Some(1000), None)
        );
        assert_eq!(policy.quota.output_bytes, Policy::default().quota.output_bytes);
        assert_eq!(policy.grants.directories, [DirectoryGrant::read_write("/srv", "/data")]);
        assert_eq!(policy.grants.clocks, Clocks::Fine);
    }
}
