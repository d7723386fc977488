//! Extended attributes.

use alloc::vec::Vec;
use linux_raw_sys::general as sys;
use mm::Errno;
use rsext4::{XattrNamespace, XattrSetMode};

use super::node::Node;

/// Kinds of extended attributes. What means something to the kernel (`system.`) is not among them.
const XATTRS: [(&[u8], XattrNamespace); 3] = [
    (b"user.", XattrNamespace::User),
    (b"trusted.", XattrNamespace::Trusted),
    (b"security.", XattrNamespace::Security),
];

fn xattr_name(name: &[u8]) -> Result<(XattrNamespace, &[u8]), Errno> {
    let known = XATTRS
        .iter()
        .find_map(|(prefix, space)| Some((*space, name.strip_prefix(*prefix)?)));
    match known {
        Some((_, [])) => Err(Errno::EINVAL),
        known => known.ok_or(Errno::EOPNOTSUPP),
    }
}

fn no_data(errno: Errno) -> Errno {
    match errno {
        Errno::ENOENT => Errno::ENODATA,
        errno => errno,
    }
}

impl Node {
    pub(super) fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let (space, name) = xattr_name(name)?;
        let value = self
            .fs
            .with(|volume| volume.get_xattr(self.number, space, name));
        value.map_err(no_data)
    }

    pub(super) fn list_xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let names = self.fs.with(|volume| volume.list_xattrs(self.number))?;
        let named = names.iter().filter_map(|name| {
            let (prefix, _) = XATTRS.iter().find(|(_, space)| *space == name.namespace)?;
            Some([*prefix, name.name.as_slice()].concat())
        });
        Ok(named.collect())
    }

    pub(super) fn put_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
        let (space, name) = xattr_name(name)?;
        if value.len() as u64 > self.fs.block {
            // All of a file's are in its inode and in one block.
            return Err(Errno::ENOSPC);
        }
        let mode = match (
            flags & sys::XATTR_CREATE != 0,
            flags & sys::XATTR_REPLACE != 0,
        ) {
            (false, false) => XattrSetMode::Upsert,
            (true, false) => XattrSetMode::Create,
            (false, true) => XattrSetMode::Replace,
            (true, true) => {
                let old = self
                    .fs
                    .with(|volume| volume.get_xattr(self.number, space, name));
                return Err(old.map_or_else(no_data, |_| Errno::EEXIST));
            }
        };
        let set = self.fs.change(|volume| {
            volume.set_xattr(self.number, space, name, value, mode)?;
            self.look_again(volume)
        });
        set.map_err(no_data)?;
        self.altered();
        Ok(())
    }

    pub(super) fn drop_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        let (space, name) = xattr_name(name)?;
        let removed = self.fs.change(|volume| {
            volume.remove_xattr(self.number, space, name)?;
            self.look_again(volume)
        });
        removed.map_err(no_data)?;
        self.altered();
        Ok(())
    }
}
