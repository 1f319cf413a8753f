//! Checked access to a guest's linear memory.

/// A guest's linear memory during one host call. Every access is checked; addresses and lengths come from the guest.
#[derive(Debug)]
pub struct GuestMemory<'a>(&'a mut [u8]);

/// The guest named a range outside its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBounds;

impl<'a> GuestMemory<'a> {
    /// The memory in `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        GuestMemory(bytes)
    }

    /// `len` bytes at `address`.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] when the range does not lie within the memory.
    pub fn slice(&self, address: u32, len: u32) -> Result<&[u8], OutOfBounds> {
        self.0.get(range(address, len)).ok_or(OutOfBounds)
    }

    /// `len` bytes at `address`, to be written.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::slice`].
    pub fn slice_mut(&mut self, address: u32, len: u32) -> Result<&mut [u8], OutOfBounds> {
        self.0.get_mut(range(address, len)).ok_or(OutOfBounds)
    }

    /// Copies `bytes` to `address`.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::slice`].
    pub fn write(&mut self, address: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let len = u32::try_from(bytes.len()).map_err(|_| OutOfBounds)?;
        self.slice_mut(address, len)?.copy_from_slice(bytes);
        Ok(())
    }

    /// The `N` bytes at `address`, for `from_le_bytes`.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::slice`].
    pub fn read<const N: usize>(&self, address: u32) -> Result<[u8; N], OutOfBounds> {
        let start = address as usize;
        self.0.get(start..start + N).and_then(|bytes| bytes.try_into().ok()).ok_or(OutOfBounds)
    }

    /// The little-endian `u32` at `address`.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::slice`].
    pub fn read_u32(&self, address: u32) -> Result<u32, OutOfBounds> {
        self.read(address).map(u32::from_le_bytes)
    }

    /// Writes the little-endian `u32` at `address`.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::slice`].
    pub fn write_u32(&mut self, address: u32, value: u32) -> Result<(), OutOfBounds> {
        self.write(address, &value.to_le_bytes())
    }

    /// Writes the little-endian `u64` at `address`.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::slice`].
    pub fn write_u64(&mut self, address: u32, value: u64) -> Result<(), OutOfBounds> {
        self.write(address, &value.to_le_bytes())
    }
}

// Two u32 add up without overflow in the 64-bit usize of every supported host.
fn range(address: u32, len: u32) -> std::ops::Range<usize> {
    address as usize..address as usize + len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_is_inside_and_one_more_is_not() {
        let mut bytes = [0u8; 8];
        let mut memory = GuestMemory::new(&mut bytes);
        assert!(memory.write_u32(4, 0x0403_0201).is_ok());
        assert_eq!(memory.write_u32(5, 0), Err(OutOfBounds));
        assert_eq!(memory.slice(8, 0), Ok(&[][..]));
        assert_eq!(memory.slice(9, 0), Err(OutOfBounds));
        assert_eq!(memory.slice(u32::MAX, u32::MAX), Err(OutOfBounds));
        assert_eq!(memory.read_u32(u32::MAX), Err(OutOfBounds));
        assert_eq!(memory.slice(4, 4), Ok(&[1, 2, 3, 4][..]));
    }
}
