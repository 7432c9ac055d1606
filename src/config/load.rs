//! Reading settings: defaults, then the file, then the environment.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::Path,
};

use toml::{Table, Value};

use super::{Config, check};

/// The environment variable that names the configuration file. It is read by
/// the command line, and is no setting itself.
pub const CONFIG_VARIABLE: &str = "HOMING_CONFIG";

const PREFIX: &str = "HOMING_";

/// A setting that cannot be used, and where it came from.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct Error {
    /// The file or environment variable that holds the setting.
    pub origin: String,
    /// Which setting it is and what is wrong with it.
    pub message: String,
}

impl Error {
    fn new(origin: impl Into<String>, message: &(impl ToString + ?Sized)) -> Self {
        Self {
            origin: origin.into(),
            message: message.to_string().trim_end().to_owned(),
        }
    }

    /// What is wrong with a TOML `text`, without the text itself, which may hold secrets.
    fn toml(origin: &str, text: &str, error: &toml::de::Error) -> Self {
        let message = without_value(error.message());
        let before = error.span().and_then(|span| text.get(..span.start));
        match before.map(|before| before.matches('\n').count() + 1) {
            Some(line) => Self::new(origin, &format!("line {line}: {message}")),
            None => Self::new(origin, &message),
        }
    }
}

/// A message of serde without the text that was found instead of what was expected.
fn without_value(message: &str) -> String {
    match (message.find(" \""), message.rfind("\", expected")) {
        (Some(start), Some(end)) if start < end => {
            format!("{}{}", &message[..start], &message[end + 1..])
        }
        _ => message.to_owned(),
    }
}

/// Reads the settings from `file`, if there is one, and from those of the
/// given environment variables (usually [`std::env::vars_os`]) whose names
/// begin with `HOMING_`. A variable overrides the file.
///
/// # Errors
///
/// The file cannot be read, a key is unknown, or a value is of the wrong type
/// or out of range.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, Error> {
    let mut settings =
        Table::try_from(Config::default()).map_err(|error| Error::new("defaults", &error))?;
    let mut file_name = "defaults".to_owned();
    if let Some(file) = file {
        file_name = file.display().to_string();
        merge(&mut settings, read(file, &file_name)?);
    }

    let variables = variables(environment)?;
    for variable in &variables {
        settings = variable.apply(&settings)?;
    }

    let config: Config = settings
        .try_into()
        .map_err(|error| Error::toml(&file_name, "", &error))?;
    match check::check(&config) {
        Ok(()) => Ok(config),
        Err(problem) => {
            let origin = variables
                .iter()
                .find(|variable| variable.sets(&problem.key))
                .map_or(file_name, |variable| variable.name.clone());
            Err(Error::new(
                origin,
                &format!("`{}` {}", problem.key, problem.message),
            ))
        }
    }
}

/// Reads a file, and checks that its keys and types are right by themselves:
/// here an error can still show the line that it is about.
fn read(file: &Path, name: &str) -> Result<Table, Error> {
    let text = fs::read_to_string(file).map_err(|error| Error::new(name, &error))?;
    let wrong = |error| Error::toml(name, &text, &error);
    toml::from_str::<Config>(&text).map_err(wrong)?;
    toml::from_str(&text).map_err(wrong)
}

/// Puts the values of `over` in the place of those in `base`. Tables are
/// merged, lists are replaced as a whole.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// A setting in the environment.
struct Variable {
    name: String,
    /// The keys that lead to the setting; a number is an index into a list.
    path: Vec<String>,
    text: String,
}

impl Variable {
    /// `settings` with this variable's value. A value that is not accepted as
    /// a string is read as TOML: a number, a boolean or a list.
    fn apply(&self, settings: &Table) -> Result<Table, Error> {
        let candidates = [
            Some(Value::String(self.text.clone())),
            self.text.trim().parse::<Value>().ok(),
        ];
        let mut refusal = None;
        for candidate in candidates.into_iter().flatten() {
            let mut changed = Value::Table(settings.clone());
            set(&mut changed, &self.path, candidate)
                .map_err(|message| Error::new(&self.name, &message))?;
            let Value::Table(changed) = changed else {
                continue;
            };
            match changed.clone().try_into::<Config>() {
                Ok(_) => return Ok(changed),
                Err(error) => refusal = Some(error),
            }
        }
        Err(match refusal {
            Some(error) => Error::toml(&self.name, "", &error),
            None => Error::new(&self.name, "cannot be used"),
        })
    }

    /// Whether this is the setting `key`, or a part of it, or has it as part.
    fn sets(&self, key: &str) -> bool {
        key.split('.').zip(&self.path).all(|(a, b)| a == b)
    }
}

/// The settings among the environment's variables, in the order in which they
/// are to be applied: a list's first element before its second.
fn variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Variable>, Error> {
    let mut found = Vec::new();
    for (name, text) in environment {
        let Ok(name) = name.into_string() else {
            continue;
        };
        let Some(keys) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if name == CONFIG_VARIABLE || describes_service(keys, &text) {
            continue;
        }
        let path = keys.to_lowercase().split("__").map(str::to_owned).collect();
        let text = text
            .into_string()
            .map_err(|_| Error::new(&name, "the value is not UTF-8"))?;
        found.push(Variable { name, path, text });
    }
    found.sort_by_cached_key(|variable| {
        let order = |key: &String| (key.parse::<usize>().unwrap_or(0), key.clone());
        variable.path.iter().map(order).collect::<Vec<_>>()
    });
    Ok(found)
}

/// Whether a variable is one of those by which Kubernetes tells every
/// container about a service that is called `homing`, such as
/// `HOMING_PORT_8008_TCP_ADDR`. A `HOMING_PORT` with a number is a person's,
/// who wants another setting.
fn describes_service(keys: &str, text: &OsStr) -> bool {
    keys == "PORT" && text.to_string_lossy().contains("://")
        || ["PORT_", "SERVICE_HOST", "SERVICE_PORT"]
            .iter()
            .any(|start| keys.starts_with(start))
}

/// Puts `new` into `tree` at `path`, making tables and lists on the way.
fn set(tree: &mut Value, path: &[String], new: Value) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        *tree = new;
        return Ok(());
    };
    let is_index = |key: &String| key.parse::<usize>().is_ok();
    let empty = || {
        if rest.first().is_some_and(is_index) {
            Value::Array(Vec::new())
        } else {
            Value::Table(Table::new())
        }
    };
    let child = match tree {
        Value::Table(table) => table.entry(key.clone()).or_insert_with(empty),
        Value::Array(list) => {
            let end = list.len();
            let index = key
                .parse::<usize>()
                .map_err(|_| format!("`{key}` is no index into a list"))?;
            if index == end {
                list.push(empty());
            }
            list.get_mut(index)
                .ok_or_else(|| format!("the list has no element {end} before element {index}"))?
        }
        _ => return Err(format!("`{key}` is not in a section")),
    };
    set(child, rest, new)
}
