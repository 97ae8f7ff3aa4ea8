//! The folder of a demo: its sockets and records, for nobody else, gone at the end.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// A private folder that is removed when it is dropped.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
}

impl Place {
    /// Makes it where this system keeps temporary files.
    ///
    /// # Errors
    /// What the file system returned, with the path.
    pub fn new() -> io::Result<Place> {
        let name = Uuid::new_v4().simple().to_string();
        let path = std::env::temp_dir().join(format!("godwit-demo-{}", &name[..12]));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(Place { path })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl AsRef<Path> for Place {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a folder could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_is_private_and_goes_away_with_what_is_in_it() {
        let place = Place::new().unwrap();
        let path = place.as_ref().to_owned();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::write(place.path("file"), b"x").unwrap();
        drop(place);
        assert!(!path.exists());
    }
}
