//! What /proc/PID/maps shows for a mapped file: a label on its page cache object.
//!
//! The label is text, since the object must not keep the file alive: it is renewed at every mapping, and marked
//! when the file's last name goes.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use mm::object::cache::Label;

use super::file::File;
use super::inode::Object;

const DELETED: &str = " (deleted)";

/// `file` is being mapped.
pub fn remember(object: &Arc<Object>, file: &File, dev: u64, ino: u64) {
    let text = file.path_text();
    let path = String::from_utf8_lossy(&text);
    let known = object.label();
    if known.path.as_deref() != Some(&*path) {
        object.set_label(Label {
            path: Some(Arc::from(&*path)),
            dev,
            ino,
        });
    }
}

/// The file has lost its last name.
pub fn deleted(object: &Object) {
    let mut label = object.label();
    if let Some(path) = &label.path
        && !path.ends_with(DELETED)
    {
        label.path = Some(Arc::from(alloc::format!("{path}{DELETED}")));
        object.set_label(label);
    }
}
