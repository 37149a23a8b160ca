//! Files and folders that are written whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::error::CheckpointError;
use super::names::CONFIG_FILE;

/// Refuses an output that is there already and is no checkpoint, or that holds one of the inputs: replacing it would remove
/// what nobody asked to remove.
///
/// # Errors
/// Names the folder, and why; also where it is no folder's name.
pub(crate) fn check_output(output: &Path, inputs: &[PathBuf]) -> Result<(), CheckpointError> {
    parent_and_name(output)?;
    let refused = |message: String| CheckpointError::Config {
        file: output.to_owned(),
        key: "output".to_owned(),
        message,
    };
    let Ok(whole) = output.canonicalize() else { return Ok(()) };
    let holds =
        |input: &&PathBuf| input.canonicalize().is_ok_and(|input| input.starts_with(&whole));
    if let Some(input) = inputs.iter().find(holds) {
        return Err(refused(format!("{} would be replaced", input.display())));
    }
    let is_empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if output.join(CONFIG_FILE).exists() || is_empty() {
        return Ok(());
    }
    Err(refused("is there, and is no checkpoint that could be replaced".to_owned()))
}

/// The parent and the name of a folder that is to be written.
///
/// # Errors
/// Where the path names no folder of its own, as `.` or `/`.
pub(crate) fn parent_and_name(folder: &Path) -> Result<(&Path, String), CheckpointError> {
    match (folder.parent(), folder.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((parent, name.to_string_lossy().into_owned()))
        }
        _ => Err(CheckpointError::Config {
            file: folder.to_owned(),
            key: "output".to_owned(),
            message: "must name a folder".to_owned(),
        }),
    }
}

/// Renames `temporary` to `folder`. Where a folder is there already the two are exchanged in one
/// step, which leaves the old one under the temporary name.
pub(in crate::checkpoint) fn put_in_place(
    temporary: &Path,
    folder: &Path,
) -> Result<(), CheckpointError> {
    if !folder.exists() {
        return fs::rename(temporary, folder).map_err(CheckpointError::io(folder));
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, temporary, CWD, folder, RenameFlags::EXCHANGE) {
            // Network and overlay file systems may lack the exchange.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            result => return result.map_err(|error| CheckpointError::io(folder)(error.into())),
        }
    }
    let replaced = Temporary(temporary.with_extension("replaced"));
    fs::rename(folder, &replaced.0).map_err(CheckpointError::io(folder))?;
    fs::rename(temporary, folder).map_err(CheckpointError::io(folder))
}

/// A folder that is removed when it is no longer needed, however the function ends.
pub(in crate::checkpoint) struct Temporary(pub(in crate::checkpoint) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a file of a folder in one step: whoever reads meanwhile sees the old one or the new one.
///
/// # Errors
/// A file that cannot be written; what was there before then stays.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let (parent, name) = parent_and_name(path)?;
    let temporary = parent.join(format!(".{name}.writing-{}", std::process::id()));
    let replaced = write_file(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(CheckpointError::io(path)));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced.and_then(|()| sync_folder(parent))
}

pub(in crate::checkpoint) fn write_files(
    folder: &Path,
    files: &[(String, Vec<u8>)],
) -> Result<(), CheckpointError> {
    for (name, bytes) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        write_file(&path, bytes)?;
        sync_folder(parent)?;
    }
    Ok(())
}

pub(in crate::checkpoint) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(CheckpointError::io(path))
}

pub(in crate::checkpoint) fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(CheckpointError::io(path))
}
