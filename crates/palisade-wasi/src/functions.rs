//! The list of WASI functions, for backends to generate their glue from.

/// Hands the list of WASI functions to the macro named by its argument.
///
/// The callback receives both modules, one after the other:
///
/// ```text
/// callback! {
///     "wasi_snapshot_preview1" {
///         call fn args_get = args_get(argv: i32, argv_buf: i32);
///         wait fn fd_read = fd_read(fd: i32, iovs: i32, iovs_len: i32, nread: i32);
///         exit fn proc_exit = proc_exit(code: i32);
///         …
///     }
///     "wasi_unstable" { … }
/// }
/// ```
///
/// The first name is the import's, the second the method's on [`WasiContext`](crate::WasiContext). Parameters have
/// Wasm's types, which are the methods' types too. The leading word says how a function returns:
///
/// * `call`: an `i32`, the error number, at once.
/// * `wait`: likewise, but the method may return [`Stop::Wait`](crate::Stop::Wait) or
///   [`Stop::Yield`](crate::Stop::Yield).
/// * `exit`: it has no result in Wasm and never returns to the guest.
///
/// ```
/// macro_rules! count {
///     ($($module:literal {
///         $($kind:ident fn $name:ident = $method:ident($($parameter:ident: $type:ident),*);)*
///     })*) => {
///         [$(($module, [$(stringify!($name)),*].len())),*]
///     };
/// }
/// let counts = palisade_wasi::for_each_wasi_function!(count);
/// assert_eq!(counts, [("wasi_snapshot_preview1", 46), ("wasi_unstable", 45)]);
/// ```
#[macro_export]
macro_rules! for_each_wasi_function {
    ($callback:ident) => {
        $crate::for_each_wasi_function! {
            @modules $callback
            // In both.
            {
                call fn args_get = args_get(argv: i32, argv_buf: i32);
                call fn args_sizes_get = args_sizes_get(argc: i32, argv_buf_size: i32);
                call fn environ_get = environ_get(environ: i32, environ_buf: i32);
                call fn environ_sizes_get = environ_sizes_get(environc: i32, environ_buf_size: i32);
                call fn clock_res_get = clock_res_get(id: i32, resolution: i32);
                call fn clock_time_get = clock_time_get(id: i32, precision: i64, time: i32);
                call fn fd_advise = fd_advise(fd: i32, offset: i64, len: i64, advice: i32);
                call fn fd_allocate = fd_allocate(fd: i32, offset: i64, len: i64);
                call fn fd_close = fd_close(fd: i32);
                wait fn fd_datasync = fd_datasync(fd: i32);
                call fn fd_fdstat_get = fd_fdstat_get(fd: i32, stat: i32);
                call fn fd_fdstat_set_flags = fd_fdstat_set_flags(fd: i32, flags: i32);
                call fn fd_fdstat_set_rights = fd_fdstat_set_rights(fd: i32, base: i64, inheriting: i64);
                call fn fd_filestat_set_size = fd_filestat_set_size(fd: i32, size: i64);
                call fn fd_filestat_set_times = fd_filestat_set_times(fd: i32, atim: i64, mtim: i64, flags: i32);
                call fn fd_pread = fd_pread(fd: i32, iovs: i32, iovs_len: i32, offset: i64, nread: i32);
                call fn fd_prestat_get = fd_prestat_get(fd: i32, prestat: i32);
                call fn fd_prestat_dir_name = fd_prestat_dir_name(fd: i32, path: i32, path_len: i32);
                call fn fd_pwrite = fd_pwrite(fd: i32, iovs: i32, iovs_len: i32, offset: i64, nwritten: i32);
                wait fn fd_read = fd_read(fd: i32, iovs: i32, iovs_len: i32, nread: i32);
                wait fn fd_readdir = fd_readdir(fd: i32, buf: i32, buf_len: i32, cookie: i64, bufused: i32);
                call fn fd_renumber = fd_renumber(from: i32, to: i32);
                wait fn fd_sync = fd_sync(fd: i32);
                call fn fd_tell = fd_tell(fd: i32, offset: i32);
                call fn fd_write = fd_write(fd: i32, iovs: i32, iovs_len: i32, nwritten: i32);
                call fn path_create_directory = path_create_directory(fd: i32, path: i32, path_len: i32);
                call fn path_filestat_set_times = path_filestat_set_times(
                    fd: i32, lookup: i32, path: i32, path_len: i32, atim: i64, mtim: i64, flags: i32);
                call fn path_link = path_link(
                    old_fd: i32, old_lookup: i32, old_path: i32, old_path_len: i32,
                    new_fd: i32, new_path: i32, new_path_len: i32);
                call fn path_open = path_open(
                    fd: i32, lookup: i32, path: i32, path_len: i32, open_flags: i32,
                    base: i64, inheriting: i64, fd_flags: i32, opened: i32);
                call fn path_readlink = path_readlink(
                    fd: i32, path: i32, path_len: i32, buf: i32, buf_len: i32, bufused: i32);
                call fn path_remove_directory = path_remove_directory(fd: i32, path: i32, path_len: i32);
                call fn path_rename = path_rename(
                    old_fd: i32, old_path: i32, old_path_len: i32, new_fd: i32, new_path: i32, new_path_len: i32);
                call fn path_symlink = path_symlink(
                    target: i32, target_len: i32, fd: i32, path: i32, path_len: i32);
                call fn path_unlink_file = path_unlink_file(fd: i32, path: i32, path_len: i32);
                exit fn proc_exit = proc_exit(code: i32);
                call fn proc_raise = proc_raise(signal: i32);
                call fn sched_yield = sched_yield();
                wait fn random_get = random_get(buf: i32, buf_len: i32);
                call fn sock_recv = sock_recv(
                    fd: i32, iovs: i32, iovs_len: i32, flags: i32, nread: i32, out_flags: i32);
                call fn sock_send = sock_send(fd: i32, iovs: i32, iovs_len: i32, flags: i32, nwritten: i32);
                call fn sock_shutdown = sock_shutdown(fd: i32, how: i32);
            }
            // As snapshot 1 has them.
            {
                call fn fd_filestat_get = fd_filestat_get(fd: i32, stat: i32);
                call fn fd_seek = fd_seek(fd: i32, offset: i64, whence: i32, position: i32);
                call fn path_filestat_get = path_filestat_get(
                    fd: i32, lookup: i32, path: i32, path_len: i32, stat: i32);
                wait fn poll_oneoff = poll_oneoff(subscriptions: i32, events: i32, count: i32, ready: i32);
                call fn sock_accept = sock_accept(fd: i32, flags: i32, accepted: i32);
            }
            // As snapshot 0 has them.
            {
                call fn fd_filestat_get = unstable_fd_filestat_get(fd: i32, stat: i32);
                call fn fd_seek = unstable_fd_seek(fd: i32, offset: i64, whence: i32, position: i32);
                call fn path_filestat_get = unstable_path_filestat_get(
                    fd: i32, lookup: i32, path: i32, path_len: i32, stat: i32);
                wait fn poll_oneoff = unstable_poll_oneoff(subscriptions: i32, events: i32, count: i32, ready: i32);
            }
        }
    };
    (@modules $callback:ident { $($both:tt)* } { $($one:tt)* } { $($zero:tt)* }) => {
        $callback! {
            "wasi_snapshot_preview1" { $($both)* $($one)* }
            "wasi_unstable" { $($both)* $($zero)* }
        }
    };
}
