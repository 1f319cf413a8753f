//! A program that misbehaves as its arguments say. Compiled by the tests.
//!
//! This is the hostile side, which no part of Palisade links.
use std::io::{Read, Write};

unsafe extern "C" {
    // Numbers in, numbers out: nothing that a caller could get wrong for this program's memory.
    safe fn raise(signal: i32) -> i32;
    safe fn abort() -> !;
    safe fn fork() -> i32;
    safe fn getpid() -> i32;
    safe fn kill(pid: i32, signal: i32) -> i32;
    fn syscall(number: i64, ...) -> i64;
}

/// Sets what is done about a signal: a function, or 1 to ignore it.
fn set_signal(number: i32, handler: usize) {
    unsafe extern "C" {
        fn signal(number: i32, handler: usize) -> usize;
    }
    // SAFETY: the handler is a function of this program that takes a number, or a value that stands for none.
    unsafe { signal(number, handler) };
}

fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 128]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + frame[7] }
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "say") {
        println!("here");
        arguments.remove(1);
    }
    // Asked as an interpreter is: leaves a mark wherever it can, beside its own file above all.
    if arguments.get(1).is_some_and(|first| first.starts_with("/plugin/")) {
        for mark in [format!("{}.ran", arguments[0]), "/tmp/palisade-ran".to_owned()] {
            let _ = std::fs::write(mark, "ran");
        }
        while arguments[0].ends_with("hangs") {
            std::thread::park();
        }
        println!("/usr");
        return;
    }
    let text = |index: usize| arguments.get(index).map_or("", String::as_str);
    let number = |index: usize| text(index).parse::<u64>().unwrap_or(0);
    let mut out = std::io::stdout();
    match text(1) {
        "echo" => drop(std::io::copy(&mut std::io::stdin(), &mut out)),
        "exit" => std::process::exit(number(2) as i32),
        "arguments" => print!("{}", arguments.join("|")),
        "environment" => std::env::vars().for_each(|(name, value)| println!("{name}={value}")),
        "host-call" => match host_call(text(2), text(3)) {
            Some((status, result)) => print!("{status} {}", String::from_utf8_lossy(&result)),
            None => print!("nobody answers"),
        },
        // Holds so many bytes itself while it passes so many.
        "host-call-long" => {
            let held = std::hint::black_box(vec![1u8; number(3) as usize]);
            // Without a copy, so that what the guest holds is what it passes.
            let (name, len) = (text(2).as_bytes(), number(4) as usize);
            let mut frame = Vec::with_capacity(21 + name.len() + len);
            frame.push(b'H');
            frame.extend((16 + name.len() as u32 + len as u32).to_le_bytes());
            frame.extend((name.len() as u64).to_le_bytes());
            frame.extend(name);
            frame.extend((len as u64).to_le_bytes());
            frame.resize(frame.len() + len, b'x');
            let mut sent = 0;
            while sent < frame.len() {
                // SAFETY: so many bytes are left.
                sent += unsafe { write(8, frame[sent..].as_ptr(), frame.len() - sent) } as usize;
            }
            let mut answer = [0u8; 6];
            // SAFETY: there is so much room.
            print!("{} {}", unsafe { read(7, answer.as_mut_ptr(), 6) }, answer[5]);
            std::hint::black_box(&held);
        }
        "host-call-forged" => {
            let frames: &[&[u8]] = match text(2) {
                "kind" => &[b"R\x0c\0\0\0", &[0; 12]],
                "setup" => &[b"E\x04\0\0\0", &[2, 0, 0, 0]],
                "long" => &[b"H\xff\xff\xff\xff"],
                _ => &[b"H\x08\0\0\0", &[0xff; 8]],
            };
            for frame in frames {
                // SAFETY: `frame` is so long.
                unsafe { write(8, frame.as_ptr(), frame.len()) };
            }
            loop {
                std::thread::park();
            }
        }
        "spin" => loop {
            std::hint::black_box(0);
        },
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(3600)),
        "read" => drop(std::io::stdin().read_to_end(&mut Vec::new())),
        "flood" => while out.write_all(&[b'x'; 65536]).is_ok() {},
        "flood-error" => while std::io::stderr().write_all(&[b'x'; 65536]).is_ok() {},
        "write" => drop(out.write_all(&vec![b'x'; number(2) as usize])),
        "touch" => {
            let mut memory: Vec<u8> = Vec::new();
            match memory.try_reserve_exact(number(2) as usize) {
                Ok(()) => {
                    memory.resize(number(2) as usize, 1);
                    print!("{}", std::hint::black_box(&memory).len());
                }
                Err(_) => std::process::exit(9),
            }
        }
        "recurse" => print!("{}", recurse(0)),
        "files" => {
            let mut open = Vec::new();
            while let Ok(file) = std::fs::File::open(text(2)) {
                open.push(file);
            }
            print!("{}", open.len());
        }
        "cat" => match std::fs::read(text(2)) {
            Ok(bytes) => drop(out.write_all(&bytes)),
            Err(error) => print!("refused: {error}"),
        },
        "list" => {
            let mut names: Vec<_> = std::fs::read_dir(text(2)).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
            names.sort();
            names.iter().for_each(|name| println!("{}", name.to_string_lossy()));
        }
        "put" => match std::fs::write(text(2), text(3)) {
            Ok(()) => print!("written"),
            Err(error) => print!("refused: {error}"),
        },
        "signal" => {
            print!("before ");
            let _ = out.flush();
            raise(number(2) as i32);
            print!("survived");
        }
        "signal-ignored" => {
            set_signal(number(2) as i32, 1);
            raise(number(2) as i32);
            print!("survived");
        }
        // So many times.
        "signal-handled" => {
            static HANDLED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            extern "C" fn count(_: i32) {
                HANDLED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            set_signal(number(2) as i32, count as extern "C" fn(i32) as usize);
            (0..number(3)).for_each(|_| drop(raise(number(2) as i32)));
            print!("handled {}", HANDLED.load(std::sync::atomic::Ordering::SeqCst));
        }
        // Held back, and then waited for.
        "signal-held" => {
            unsafe extern "C" {
                fn sigprocmask(how: i32, set: *const u64, old: *mut u64) -> i32;
                fn sigwait(set: *const u64, signal: *mut i32) -> i32;
            }
            let set = [1u64 << (number(2) - 1), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let mut got = 0;
            // SAFETY: sets of the C library have this size.
            unsafe { sigprocmask(0, set.as_ptr(), std::ptr::null_mut()) };
            kill(getpid(), number(2) as i32);
            // SAFETY: as above.
            unsafe { sigwait(set.as_ptr(), &mut got) };
            print!("waited for {got}");
        }
        "abort" => abort(),
        // SAFETY: none, on purpose; nothing is mapped there, so the kernel ends this process.
        "segv" => unsafe { *(8 as *mut u8) = 1 },
        // SAFETY: only registers that are named change; the division by zero ends this process.
        "divide" => unsafe { std::arch::asm!("xor edx, edx", "mov eax, 1", "xor ecx, ecx", "div ecx", out("eax") _, out("edx") _, out("ecx") _) },
        "stop" => {
            kill(getpid(), 19);
            print!("went on");
        },
        "fork" => print!("{}", fork()),
        "thread" => print!("{}", if std::thread::Builder::new().spawn(|| {}).is_ok() { "made" } else { "refused" }),
        // Children that wait until they are killed; one of them in a session of its own, with a child of its own.
        "children" => {
            unsafe extern "C" {
                safe fn setsid() -> i32;
                safe fn pause() -> i32;
            }
            let mut made = 0;
            while made < 100 {
                match fork() {
                    0 => {
                        if made == 1 && fork() > 0 {
                            setsid();
                        }
                        loop {
                            pause();
                        }
                    },
                    1.. => made += 1,
                    _ => break,
                }
            }
            println!("{made}");
            if text(2) == "stay" {
                loop {
                    pause();
                }
            }
        }
        // Children that nobody waits for, each gone before it is worth looking at.
        "burn-children" => {
            unsafe extern "C" {
                fn signal(number: i32, handler: usize) -> usize;
                safe fn sleep(seconds: u32) -> u32;
            }
            // SAFETY: 1 is `SIG_IGN`, no function.
            unsafe { signal(17, 1) };
            loop {
                match fork() {
                    0 => {
                        let begun = std::time::Instant::now();
                        while begun.elapsed().as_millis() < 5 {}
                        std::process::exit(0);
                    }
                    1.. => {}
                    _ => drop(sleep(0)),
                }
            }
        }
        "run" => {
            let status = std::process::Command::new("/plugin/guest").args(&arguments[2..]).status();
            print!("{status:?}");
        }
        "burn-threads" => {
            let spin = || loop {
                std::hint::black_box(0);
            };
            for _ in 0..3 {
                let _ = std::thread::Builder::new().stack_size(65536).spawn(spin);
            }
            spin()
        }
        "threads" => {
            // All of them wait, so that they are alive at once.
            let barrier: &'static std::sync::Mutex<()> = Box::leak(Box::new(std::sync::Mutex::new(())));
            let held = barrier.lock();
            let mut made = 0;
            while made < 100 && std::thread::Builder::new().stack_size(65536).spawn(|| drop(barrier.lock())).is_ok() {
                made += 1;
            }
            drop(held);
            print!("{made}");
        }
        "close" => {
            for fd in 0..16 {
                // SAFETY: `close` takes a number. What others did with these descriptors fails from here on, as it is meant to.
                unsafe { syscall(3, fd as i64) };
            }
            loop {
                std::hint::black_box(0);
            }
        }
        "forge" => {
            // The pipe of the worker is gone once a program runs; this writes where it was.
            let frame = [b'R', 4, 0, 0, 0, 0, 0, 0, 0];
            // SAFETY: `write` reads as many bytes as `frame` has.
            let written = unsafe { syscall(1, 4i64, frame.as_ptr(), frame.len()) };
            print!("{written}");
        }
        // SAFETY: none, on purpose: any system call, with zeros.
        "syscall" => match unsafe { syscall(number(2) as i64, 0i64, 0i64, 0i64, 0i64, 0i64, 0i64) } {
            -1 => print!("-1 {}", std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            result => print!("{result}"),
        },
        // Every way to leave a right behind in directory `text(2)`, by number as another C library might; says which worked.
        "rights" => rights(text(2)),
        // Whether a signal to its own process group would reach anybody, or to all it may reach.
        "signal-group" => {
            unsafe extern "C" {
                safe fn getpgrp() -> i32;
            }
            print!("{} {} {}", getpgrp() == getpid(), kill(0, 0), kill(-1, 0));
        }
        "id" => print!("{}", getpid()),
        "stderr" => eprint!("{}", text(2)),
        "clock" => {
            let start = std::time::Instant::now();
            print!("{}", start.elapsed() < std::time::Duration::from_secs(1));
        }
        other => {
            eprintln!("unknown action {other}");
            std::process::exit(64);
        }
    }
}

fn rights(directory: &str) {
    let path = |name: &str| std::ffi::CString::new(format!("{directory}/{name}")).unwrap();
    let plain = path("plain");
    let (at, here) = (-100i64, plain.as_ptr());
    drop(std::fs::File::create(format!("{directory}/plain")));
    let fd = std::fs::File::options().read(true).write(true).open(format!("{directory}/plain")).map_or(-1, |file| {
        use std::os::fd::IntoRawFd;
        i64::from(file.into_raw_fd())
    });
    let mut attempt = |name: &str, number: i64, a: [i64; 6]| {
        // SAFETY: every pointer among the arguments is to a string or array that outlives the call.
        let result = unsafe { syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
        if result >= 0 {
            println!("{name}");
        }
    };
    const CREATE: i64 = 0o101;
    const TEMPORARY: i64 = 0o20200001;
    for mode in [0o4755, 0o2755, 0o6755, 0o4000, 0x1_0000_09ed] {
        let text = format!("{mode:o}");
        let fresh = |kind: &str| path(&format!("{kind}-{text}"));
        attempt(&format!("chmod {text}"), 90, [here as i64, mode, 0, 0, 0, 0]);
        attempt(&format!("fchmod {text}"), 91, [fd, mode, 0, 0, 0, 0]);
        attempt(&format!("fchmodat {text}"), 268, [at, here as i64, mode, 0, 0, 0]);
        attempt(&format!("fchmodat2 {text}"), 452, [at, here as i64, mode, 0, 0, 0]);
        attempt(&format!("open {text}"), 2, [fresh("open").as_ptr() as i64, CREATE, mode, 0, 0, 0]);
        attempt(&format!("openat {text}"), 257, [at, fresh("openat").as_ptr() as i64, CREATE, mode, 0, 0]);
        attempt(&format!("temporary {text}"), 257, [at, path(".").as_ptr() as i64, TEMPORARY, mode, 0, 0]);
        attempt(&format!("creat {text}"), 85, [fresh("creat").as_ptr() as i64, mode, 0, 0, 0, 0]);
        attempt(&format!("mkdir {text}"), 83, [fresh("mkdir").as_ptr() as i64, mode, 0, 0, 0, 0]);
        attempt(&format!("mkdirat {text}"), 258, [at, fresh("mkdirat").as_ptr() as i64, mode, 0, 0, 0]);
        attempt(&format!("mknod {text}"), 133, [fresh("mknod").as_ptr() as i64, 0o100000 | mode, 0, 0, 0, 0]);
        let how = [CREATE as u64, mode as u64, 0];
        attempt(&format!("openat2 {text}"), 437, [at, fresh("openat2").as_ptr() as i64, how.as_ptr() as i64, 24, 0, 0]);
    }
    // A device, a pipe, a socket; somebody else's file; capabilities and access lists.
    for (name, kind) in [("device", 0o020666), ("block", 0o060666), ("pipe", 0o010666), ("socket", 0o140666)] {
        attempt(name, 259, [at, path(name).as_ptr() as i64, kind, 0x103, 0, 0]);
    }
    attempt("chown", 92, [here as i64, 0, 0, 0, 0, 0]);
    attempt("fchownat", 260, [at, here as i64, 0, 0, 0, 0]);
    let capability = [1u32 | 2 << 24, u32::MAX, 0, 0, 0];
    let names = [c"security.capability", c"system.posix_acl_access", c"trusted.x", c"user.x"];
    for name in names {
        let arguments = [here as i64, name.as_ptr() as i64, capability.as_ptr() as i64, 20, 0, 0];
        attempt(&format!("setxattr {}", name.to_string_lossy()), 188, arguments);
        attempt(&format!("fsetxattr {}", name.to_string_lossy()), 190, [fd, arguments[1], arguments[2], 20, 0, 0]);
        attempt(&format!("setxattrat {}", name.to_string_lossy()), 463, [at, here as i64, 0, arguments[1], 0, 16]);
    }
    println!("end");
}

unsafe extern "C" {
    fn write(fd: i32, from: *const u8, len: usize) -> isize;
    fn read(fd: i32, to: *mut u8, len: usize) -> isize;
}

/// As `palisade.h` describes it: status and result.
fn host_call(name: &str, input: &str) -> Option<(u8, Vec<u8>)> {
    let mut message = Vec::new();
    for part in [name, input] {
        message.extend((part.len() as u64).to_le_bytes());
        message.extend(part.as_bytes());
    }
    let mut frame = vec![b'H'];
    frame.extend((message.len() as u32).to_le_bytes());
    frame.extend(message);
    // SAFETY: `frame` is so long.
    if unsafe { write(8, frame.as_ptr(), frame.len()) } != frame.len() as isize {
        return None;
    }
    let exact = |len: usize| {
        let (mut bytes, mut done) = (vec![0; len], 0);
        while done < len {
            // SAFETY: there is so much room behind `done`.
            match unsafe { read(7, bytes[done..].as_mut_ptr(), len - done) } {
                n @ 1.. => done += n as usize,
                _ => return None,
            }
        }
        Some(bytes)
    };
    let header = exact(5)?;
    let answer = exact(u32::from_le_bytes(header[1..].try_into().unwrap()) as usize)?;
    (header[0] == b'h').then(|| (answer[0], answer[1..].to_vec()))
}
