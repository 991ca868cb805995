//! How a source's server is reached: the connection string that the coordinators
//! keep, and a password that they need not keep.
//!
//! A password in a file is read at every connection, so that it can change while the
//! consumer runs. A file that others may read, or the group may write, is refused.

use anyhow::{Context, ensure};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio_postgres::Config;

/// A password is no longer than what fits into a message of the protocol.
const PASSWORD_BYTES_MAX: u64 = 8 << 10;
/// What nobody but the owner may do, and what the group may not.
const MODE_REFUSED: u32 = 0o027;

#[derive(Clone, Debug)]
pub struct Postgres {
    config: Config,
    /// Counts before the connection string's password; it may be absent.
    password_file: Option<PathBuf>,
}

impl From<Config> for Postgres {
    fn from(config: Config) -> Self {
        Self {
            config,
            password_file: None,
        }
    }
}

impl Postgres {
    /// The source's file in the folder has its name.
    pub fn with_credentials(config: Config, folder: Option<&Path>, source: &str) -> Self {
        Self {
            config,
            password_file: folder.and_then(|folder| file_of(folder, source)),
        }
    }

    pub fn with_password_file(config: Config, file: PathBuf) -> Self {
        Self {
            config,
            password_file: Some(file),
        }
    }

    pub fn database(&self) -> &str {
        let user = self.config.get_user().unwrap_or_default();
        self.config.get_dbname().unwrap_or(user)
    }

    /// As the next connection needs it.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.config.clone();
        let read = self.password_file.as_deref().map(read_password);
        if let Some(password) = read.transpose()?.flatten() {
            config.password(password);
        }
        Ok(config)
    }

    /// Where a password that is asked for could lie; for messages.
    pub fn missing_password(&self) -> String {
        match &self.password_file {
            Some(file) => format!(
                "the server asks for a password: there is none in the connection string, and no file {}",
                file.display()
            ),
            None => "the server asks for a password, and the connection string has none".to_owned(),
        }
    }
}

/// `None` where the name cannot be a file's.
fn file_of(folder: &Path, source: &str) -> Option<PathBuf> {
    let is_name = !source.is_empty() && !source.starts_with('.') && !source.contains(['/', '\0']);
    is_name.then(|| folder.join(source))
}

/// The first line. `None`: there is no such file.
pub fn read_password(file: &Path) -> anyhow::Result<Option<String>> {
    let shown = file.display();
    let metadata = match std::fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata.with_context(|| format!("looking at {shown}"))?,
    };
    let mode = metadata.permissions().mode();
    ensure!(
        mode & MODE_REFUSED == 0,
        "{shown} holds a password and has mode {:o}: chmod 600 it, or 640 where a group must read it",
        mode & 0o777
    );
    ensure!(
        metadata.len() <= PASSWORD_BYTES_MAX,
        "{shown} has {} bytes, which is no password",
        metadata.len()
    );
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {shown}"))?;
    let password = text.lines().next().unwrap_or_default();
    ensure!(
        !password.is_empty(),
        "{shown} has no password in its first line"
    );
    Ok(Some(password.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(file: &Path, text: &str, mode: u32) {
        std::fs::write(file, text).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_password_is_read_anew_for_each_connection_and_comes_before_the_stored_one() {
        let folder = tempfile::tempdir().unwrap();
        let stored: Config = "postgresql://u:stored@h/shop".parse().unwrap();
        let server = Postgres::with_credentials(stored, Some(folder.path()), "shop@h:5432");
        let password = || server.config().unwrap().get_password().unwrap().to_vec();
        assert_eq!(password(), b"stored", "there is no file");
        let file = folder.path().join("shop@h:5432");
        write(&file, "first\nnot this\n", 0o600);
        assert_eq!(password(), b"first");
        write(&file, "second", 0o640);
        assert_eq!(password(), b"second");
    }

    #[test]
    fn p9_a_file_that_others_may_read_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop");
        for mode in [0o604, 0o644, 0o660] {
            write(&file, "secret", mode);
            let refused = read_password(&file).unwrap_err().to_string();
            assert!(refused.contains("chmod 600"), "{refused}");
            assert!(!refused.contains("secret"));
        }
        write(&file, "\n", 0o600);
        assert!(read_password(&file).is_err());
        assert_eq!(read_password(&folder.path().join("none")).unwrap(), None);
    }

    #[test]
    fn a_sources_name_does_not_lead_out_of_the_folder() {
        for name in ["../shop", "/etc/passwd", ".", "..", "", "a/b"] {
            assert_eq!(file_of(Path::new("/credentials"), name), None, "{name}");
        }
    }
}
