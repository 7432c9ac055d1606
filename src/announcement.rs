//! What a person who has started the server reads first.

use crate::config::{Config, RegistrationMode};

/// Says where the server listens, how to point a client at it and how to make
/// an account.
///
/// `urls` are those of the open listeners; `first_token` is the registration
/// token of the first account, as long as there is none; `command` is how this
/// program is run with the same settings.
#[must_use]
pub fn announce(
    config: &Config,
    urls: &[String],
    first_token: Option<&str>,
    command: &str,
) -> String {
    let mut lines = vec![format!(
        "Homing {} serves {} on {}.",
        env!("CARGO_PKG_VERSION"),
        config.server_name,
        urls.join(" and ")
    )];
    if let Some(url) = client_url(config, urls) {
        lines.push(format!(
            "In a Matrix client, enter {url} as the homeserver."
        ));
    }
    let accounts = match (first_token, config.registration.mode) {
        (Some(token), _) => &format!(
            "There is no administrator yet. Register one in a client with this registration\n\
             token:\n\n    {token}\n\n\
             or run `{command} create-user NAME --admin`."
        ),
        (None, RegistrationMode::Closed) => {
            &format!("Registration is closed; `{command} create-user NAME` makes an account.")
        }
        (None, RegistrationMode::Token) => "Registration needs a token.",
        (None, RegistrationMode::Open) => "Registration is open to everybody.",
    };
    lines.push(accounts.to_owned());
    lines.join("\n") + "\n"
}

/// The URL to enter in a client: the public one if it is known, else the first
/// listener's, as seen from this machine.
fn client_url(config: &Config, urls: &[String]) -> Option<String> {
    let known = config.well_known.client_base_url.clone();
    known.or_else(|| {
        let url = urls.first()?;
        Some(
            url.replace("://0.0.0.0:", "://localhost:")
                .replace("://[::]:", "://localhost:"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_start_says_all_that_a_person_needs() {
        let urls = ["http://127.0.0.1:8008".to_owned()];
        let text = announce(&Config::default(), &urls, Some("T0KEN"), "./homing");
        for part in [
            "localhost",
            &urls[0],
            "T0KEN",
            "`./homing create-user NAME --admin`",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn later_starts_say_who_can_register() {
        let cases = [
            (RegistrationMode::Closed, "closed"),
            (RegistrationMode::Token, "token"),
            (RegistrationMode::Open, "open"),
        ];
        for (mode, expected) in cases {
            let mut config = Config::default();
            config.registration.mode = mode;
            let text = announce(&config, &["http://[::]:80".to_owned()], None, "homing");
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("http://localhost:80 "), "{text}");
        }
    }

    #[test]
    fn public_url_is_the_one_for_clients() {
        let mut config = Config::default();
        config.well_known.client_base_url = Some("https://m.example.org".to_owned());
        let text = announce(&config, &["http://10.0.0.1:80".to_owned()], None, "homing");
        assert!(text.contains("enter https://m.example.org as"), "{text}");
    }
}
