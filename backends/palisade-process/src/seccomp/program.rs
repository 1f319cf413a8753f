//! From rules to a filter program: a balanced tree of comparisons over system call numbers.

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is carried out.
    Allow,
    /// It fails with this error number.
    Errno(i32),
    /// The host is told of it and decides; until then the thread waits, and where no host listens the call fails with
    /// `ENOSYS`.
    Ask,
    /// The process is killed with `SIGSYS`.
    Kill,
}

impl Action {
    /// The value a filter returns (`linux/seccomp.h`).
    pub(crate) fn value(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Errno(errno) => 0x0005_0000 | (errno as u32 & 0xffff),
            Action::Ask => 0x7fc0_0000,
            Action::Kill => 0x8000_0000,
        }
    }
}

/// A condition on one argument.
///
/// Most arguments are 32 bits wide to the kernel and are compared as such: a filter that looks at more can be passed by
/// setting bits the kernel ignores (CVE-2019-10063).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Which argument, from 0.
    pub(crate) argument: u8,
    /// Bits that count.
    pub(crate) mask: u32,
    /// What these bits must be.
    pub(crate) value: u32,
    /// Whether the upper half must be zero as well.
    pub(crate) wide: bool,
}

/// The first case whose conditions all hold decides.
pub(crate) type Case = (&'static [Condition], Action);

/// What happens to one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Cases, in order.
    pub(crate) cases: &'static [Case],
    /// What happens when no case fits.
    pub(crate) otherwise: Action,
}

impl Decision {
    pub(crate) const fn always(action: Action) -> Self {
        Decision { cases: &[], otherwise: action }
    }
}

/// One instruction: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

pub(crate) const LOAD: u16 = 0x20;
pub(crate) const AND: u16 = 0x54;
pub(crate) const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_AT_LEAST: u16 = 0x35;
pub(crate) const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// First number of the x32 ABI, which shares the architecture of x86-64.
const X32: u32 = 0x4000_0000;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

/// The program for `rules`, which are sorted by number without repetition; all other numbers get `otherwise`. `asked` takes
/// the place of [`Action::Ask`]. Calls of another architecture than `arch` (an `AUDIT_ARCH` value), and of the x32 ABI, kill.
pub(crate) fn compile(arch: u32, rules: &[(u32, Decision)], otherwise: Action, asked: Action) -> Vec<Instruction> {
    debug_assert!(rules.is_sorted_by(|a, b| a.0 < b.0), "rules are sorted");
    // Segments of numbers that share a leaf, as (first number, leaf). They cover everything below the x32 numbers.
    let mut segments: Vec<(u32, Decision)> = Vec::new();
    let mut push = |first: u32, decision: Decision| match segments.last_mut() {
        Some((start, last)) if *start == first => *last = decision,
        Some((_, last)) if *last == decision => {}
        _ => segments.push((first, decision)),
    };
    push(0, Decision::always(otherwise));
    for (number, decision) in rules {
        push(*number, *decision);
        push(number + 1, Decision::always(otherwise));
    }
    push(X32, Decision::always(Action::Kill));
    let mut program = vec![
        plain(LOAD, ARCH),
        Instruction { code: JUMP_EQUAL, jump_true: 1, jump_false: 0, k: arch },
        plain(RETURN, Action::Kill.value()),
        plain(LOAD, NUMBER),
    ];
    program.extend(tree(&segments, asked));
    program
}

fn tree(segments: &[(u32, Decision)], asked: Action) -> Vec<Instruction> {
    if let [(_, decision)] = segments {
        return leaf(decision, asked);
    }
    let (low, high) = segments.split_at(segments.len() / 2);
    let (pivot, low, high) = (high[0].0, tree(low, asked), tree(high, asked));
    let mut code = match u8::try_from(low.len()) {
        Ok(skip) => vec![Instruction { code: JUMP_AT_LEAST, jump_true: skip, jump_false: 0, k: pivot }],
        // A conditional jump reaches 255 instructions; a plain one, any distance.
        Err(_) => vec![
            Instruction { code: JUMP_AT_LEAST, jump_true: 0, jump_false: 1, k: pivot },
            plain(JUMP, low.len() as u32),
        ],
    };
    code.extend(low);
    code.extend(high);
    code
}

fn leaf(decision: &Decision, asked: Action) -> Vec<Instruction> {
    let value = |action: Action| if action == Action::Ask { asked.value() } else { action.value() };
    let otherwise = value(decision.otherwise);
    if decision.cases.iter().all(|(_, action)| value(*action) == otherwise) {
        return vec![plain(RETURN, otherwise)];
    }
    let mut code = Vec::new();
    // The argument, and the bits of it, that the case before has left to compare with.
    let mut loaded: Option<(u8, u32)> = None;
    for (conditions, action) in decision.cases {
        // Built from the end: a condition that fails jumps behind the case.
        let mut case = vec![plain(RETURN, value(*action))];
        let word = |argument: u8, half: u32| ARGUMENTS + 8 * u32::from(argument) + 4 * half;
        let guard = |case: &mut Vec<Instruction>, load: Option<u32>, mask: u32, value: u32| {
            let skip = u8::try_from(case.len()).unwrap_or(u8::MAX);
            debug_assert!(case.len() <= u8::MAX.into(), "a case is short");
            let mut guarded = Vec::new();
            if let Some(load) = load {
                guarded.push(plain(LOAD, load));
                if mask != u32::MAX {
                    guarded.push(plain(AND, mask));
                }
            }
            guarded.push(Instruction { code: JUMP_EQUAL, jump_true: 0, jump_false: skip, k: value });
            guarded.append(case);
            *case = guarded;
        };
        for (index, condition) in conditions.iter().enumerate().rev() {
            if condition.wide {
                guard(&mut case, Some(word(condition.argument, 1)), u32::MAX, 0);
            }
            let is_loaded = index == 0 && loaded == Some((condition.argument, condition.mask));
            let load = word(condition.argument, 0);
            guard(&mut case, Some(load).filter(|_| !is_loaded), condition.mask, condition.value);
        }
        // Where one condition is all there was, what failed is what is loaded.
        loaded = match conditions {
            [only] if !only.wide => Some((only.argument, only.mask)),
            _ => None,
        };
        code.extend(case);
    }
    code.push(plain(RETURN, otherwise));
    code
}

/// The bytes of an array of `struct sock_filter`.
pub(crate) fn encode(program: &[Instruction]) -> Vec<u8> {
    let bytes = |i: &Instruction| {
        let [c0, c1] = i.code.to_ne_bytes();
        let [k0, k1, k2, k3] = i.k.to_ne_bytes();
        [c0, c1, i.jump_true, i.jump_false, k0, k1, k2, k3]
    };
    program.iter().flat_map(bytes).collect()
}

/// Runs a program, as the kernel would.
#[cfg(test)]
pub(crate) fn evaluate(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCH => arch,
        _ => {
            let (argument, high) = ((offset - ARGUMENTS) / 8, (offset - ARGUMENTS) % 8 == 4);
            (arguments[argument as usize] >> if high { 32 } else { 0 }) as u32
        }
    };
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let i = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { i.jump_true } else { i.jump_false });
        match i.code {
            LOAD => accumulator = word(i.k),
            AND => accumulator &= i.k,
            JUMP => at += i.k as usize,
            JUMP_EQUAL => at += branch(accumulator == i.k),
            JUMP_AT_LEAST => at += branch(accumulator >= i.k),
            RETURN => return i.k,
            code => panic!("unknown instruction {code:#x}"),
        }
    }
}
