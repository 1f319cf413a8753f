//! Arguments and environment.

use crate::errno::{Fail, settle};
use crate::layout::element;
use crate::{Errno, GuestMemory, Stop, Streams, WasiContext};

impl WasiContext {
    /// Writes the arguments and pointers to them.
    pub fn args_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        argv: i32,
        argv_buf: i32,
    ) -> Result<Errno, Stop> {
        settle(|| write_strings(memory, self.argv(), argv as u32, argv_buf as u32))
    }

    /// Writes the number of arguments and their bytes.
    pub fn args_sizes_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        argc: i32,
        argv_buf_size: i32,
    ) -> Result<Errno, Stop> {
        settle(|| write_sizes(memory, self.argv(), argc as u32, argv_buf_size as u32))
    }

    /// Writes the environment and pointers to its entries.
    pub fn environ_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        environ: i32,
        environ_buf: i32,
    ) -> Result<Errno, Stop> {
        settle(|| write_strings(memory, self.environment(), environ as u32, environ_buf as u32))
    }

    /// Writes the number of environment entries and their bytes.
    pub fn environ_sizes_get(
        &mut self,
        memory: &mut GuestMemory<'_>,
        _streams: &mut Streams,
        environc: i32,
        environ_buf_size: i32,
    ) -> Result<Errno, Stop> {
        settle(|| write_sizes(memory, self.environment(), environc as u32, environ_buf_size as u32))
    }

    fn argv(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.config.program.as_str()).chain(self.arguments.iter().map(String::as_str))
    }

    fn environment(&self) -> impl Iterator<Item = &str> {
        self.config.environment.iter().map(String::as_str)
    }
}

fn write_strings<'a>(
    memory: &mut GuestMemory<'_>,
    strings: impl Iterator<Item = &'a str>,
    pointers: u32,
    mut buffer: u32,
) -> Result<(), Fail> {
    for (index, string) in (0..).zip(strings) {
        memory.write_u32(element(pointers, index, 4)?, buffer)?;
        memory.write(buffer, string.as_bytes())?;
        // The write succeeded, so that the length fits.
        buffer = element(buffer, string.len() as u32, 1)?;
        memory.write(buffer, &[0])?;
        buffer = element(buffer, 1, 1)?;
    }
    Ok(())
}

fn write_sizes<'a>(
    memory: &mut GuestMemory<'_>,
    strings: impl Iterator<Item = &'a str>,
    count_at: u32,
    bytes_at: u32,
) -> Result<(), Fail> {
    let (count, bytes) = strings.fold((0usize, 0usize), |(count, bytes), s| (count + 1, bytes + s.len() + 1));
    let size = |n: usize| u32::try_from(n).map_err(|_| Errno::Overflow);
    memory.write_u32(count_at, size(count)?)?;
    memory.write_u32(bytes_at, size(bytes)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::Errno;
    use crate::tests::Guest;
    use palisade_core::Policy;

    #[test]
    fn the_program_comes_first() {
        let mut guest = Guest::new(&Policy::default());
        guest.context.begin_call(vec!["a".into(), "bc".into()]);
        assert_eq!(guest.call2(super::WasiContext::args_sizes_get, 0, 4), Errno::Success);
        assert_eq!((guest.u32(0), guest.u32(4)), (3, 6 + 2 + 3));
        assert_eq!(guest.call2(super::WasiContext::args_get, 16, 100), Errno::Success);
        assert_eq!([16, 20, 24].map(|at| guest.u32(at)), [100, 106, 108]);
        assert_eq!(&guest.memory[100..111], b"guest\0a\0bc\0");
    }

    #[test]
    fn the_environment_is_what_was_granted() {
        let mut policy = Policy::default();
        policy.grants.environment.insert("A".into(), "b=c".into());
        let mut guest = Guest::new(&policy);
        assert_eq!(guest.call2(super::WasiContext::environ_sizes_get, 0, 4), Errno::Success);
        assert_eq!((guest.u32(0), guest.u32(4)), (1, 6));
        assert_eq!(guest.call2(super::WasiContext::environ_get, 16, 100), Errno::Success);
        assert_eq!(&guest.memory[100..106], b"A=b=c\0");
    }

    #[test]
    fn bad_addresses_are_faults() {
        let mut guest = Guest::new(&Policy::default());
        assert_eq!(guest.call2(super::WasiContext::args_get, -1, 0), Errno::Fault);
        assert_eq!(guest.call2(super::WasiContext::args_get, 0, -1), Errno::Fault);
        assert_eq!(guest.call2(super::WasiContext::args_sizes_get, 0, -4), Errno::Fault);
    }
}
