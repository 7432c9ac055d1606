//! What guests may do ("Guest Access").

use http::Method;

/// Whether guests may use the endpoint of the Client-Server API with this method and path.
pub(super) fn may(method: &Method, path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    if parts.next() != Some("_matrix") || parts.next() != Some("client") {
        return false;
    }
    // The version.
    parts.next();
    let parts: Vec<&str> = parts.collect();
    match *method {
        Method::GET => matches!(
            *parts,
            ["rooms", _, "state", ..]
                | ["rooms", _, "context" | "event", _]
                | ["rooms", _, "messages" | "members" | "initialSync"]
                | ["sync" | "events" | "devices"]
                | ["devices", _]
                | ["account", "whoami"]
                | ["media", "download" | "thumbnail", ..]
        ),
        Method::POST => matches!(
            *parts,
            ["rooms", _, "join" | "leave"]
                | ["join", _]
                | ["keys", "upload" | "query" | "claim"]
                | ["logout", ..]
        ),
        Method::PUT => matches!(
            *parts,
            ["rooms", _, "send" | "state", ..]
                | ["sendToDevice", _, _]
                | ["profile", _, "displayname"]
                | ["devices", _]
        ),
        Method::DELETE => matches!(*parts, ["profile", _, "displayname"]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_see_and_talk_but_own_nothing() {
        let cases = [
            (Method::GET, "v3/sync", true),
            (Method::GET, "v3/rooms/!a:b/state", true),
            (Method::GET, "r0/rooms/!a:b/state/m.room.name/", true),
            (Method::POST, "v3/rooms/!a:b/join", true),
            (Method::PUT, "v3/rooms/!a:b/send/m.room.message/1", true),
            (Method::PUT, "v3/profile/@a:b/displayname", true),
            (Method::PUT, "v3/profile/@a:b/avatar_url", false),
            (Method::POST, "v3/rooms/!a:b/invite", false),
            (Method::POST, "v3/createRoom", false),
            (Method::DELETE, "v3/devices/A", false),
            (Method::GET, "v3/account/3pid", false),
        ];
        for (method, path, expected) in cases {
            let path = format!("/_matrix/client/{path}");
            assert_eq!(may(&method, &path), expected, "{method} {path}");
        }
        assert!(!may(&Method::GET, "/_synapse/admin/sync"));
    }
}
