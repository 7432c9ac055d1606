//! A good request for each endpoint.

use homing::http::Endpoint;
use reqwest::Method;

use super::Person;

/// What is good for an endpoint, besides the arguments in its path.
#[derive(Clone, Copy)]
pub struct Example {
    method: &'static str,
    /// The end of its newest path.
    path: &'static str,
    pub query: &'static str,
    /// Its JSON body, if it reads one.
    pub body: Option<&'static str>,
    /// Whether it answers without an access token.
    pub open: bool,
}

/// Nothing but arguments in the path.
const PLAIN: Example = Example {
    method: "GET",
    path: "",
    query: "",
    body: None,
    open: false,
};

const fn get(path: &'static str, query: &'static str) -> Example {
    Example {
        method: "GET",
        path,
        query,
        ..PLAIN
    }
}

const fn post(path: &'static str, body: &'static str) -> Example {
    Example {
        method: "POST",
        path,
        body: Some(body),
        ..PLAIN
    }
}

const fn put(path: &'static str, body: &'static str) -> Example {
    Example {
        method: "PUT",
        path,
        body: Some(body),
        ..PLAIN
    }
}

/// A `POST` or `PUT` that reads no JSON, or whose endpoint has nothing in its body.
const fn bare(method: &'static str, path: &'static str) -> Example {
    Example {
        method,
        path,
        ..PLAIN
    }
}

const fn open(example: Example) -> Example {
    Example {
        open: true,
        ..example
    }
}

#[rustfmt::skip]
static EXAMPLES: &[Example] = &[
    open(get("/versions", "")),
    open(get("/.well-known/matrix/client", "")),
    open(get("/.well-known/matrix/server", "")),
    open(get("/.well-known/matrix/support", "")),
    open(get("/auth_metadata", "")),
    open(get("/health", "")),
    // Accounts
    open(get("/login", "")),
    open(post("/login", r#"{"type":"m.login.password","identifier":{"type":"m.id.user","user":"bob"},"password":"wrong","device_id":"D","initial_device_display_name":"Phone","refresh_token":true}"#)),
    open(post("/register", r#"{"username":"new","password":"correct horse","device_id":"D","initial_device_display_name":"Phone","inhibit_login":true,"refresh_token":false,"auth":{"type":"m.login.dummy","session":"x"}}"#)),
    open(get("/register/available", "username=carol")),
    open(get("/register/m.login.registration_token/validity", "token=abc")),
    open(post("/register/email/requestToken", r#"{"client_secret":"abc","email":"a@example.org","send_attempt":1,"next_link":"https://example.org"}"#)),
    open(post("/register/msisdn/requestToken", r#"{"client_secret":"abc","country":"GB","phone_number":"1","send_attempt":1}"#)),
    open(post("/account/password/email/requestToken", r#"{"client_secret":"abc","email":"a@example.org","send_attempt":1}"#)),
    open(post("/account/password/msisdn/requestToken", r#"{"client_secret":"abc","country":"GB","phone_number":"1","send_attempt":1}"#)),
    open(post("/account/3pid/email/requestToken", r#"{"client_secret":"abc","email":"a@example.org","send_attempt":1}"#)),
    open(post("/account/3pid/msisdn/requestToken", r#"{"client_secret":"abc","country":"GB","phone_number":"1","send_attempt":1}"#)),
    post("/account/3pid", r#"{"three_pid_creds":{"client_secret":"a","id_access_token":"b","id_server":"c","sid":"d"}}"#),
    post("/account/3pid/add", r#"{"client_secret":"a","sid":"b","auth":{"type":"m.login.dummy"}}"#),
    post("/account/3pid/bind", r#"{"client_secret":"a","id_access_token":"b","id_server":"c","sid":"d"}"#),
    post("/account/3pid/delete", r#"{"address":"a@example.org","medium":"email","id_server":"c"}"#),
    post("/account/3pid/unbind", r#"{"address":"a@example.org","medium":"email","id_server":"c"}"#),
    open(post("/refresh", r#"{"refresh_token":"abc"}"#)),
    open(post("/account/password", r#"{"new_password":"battery staple","logout_devices":false,"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"bob"},"password":"wrong","session":"x"}}"#)),
    open(post("/account/deactivate", r#"{"erase":false,"id_server":"a","auth":{"type":"m.login.password","password":"wrong","session":"x"}}"#)),
    post("/login/get_token", r#"{"auth":{"type":"m.login.password","password":"wrong","session":"x"}}"#),
    open(get("/auth/{auth_type}/fallback/web", "session=x")),
    open(get("/login/sso/redirect", "redirectUrl=https://example.org")),
    open(get("/login/sso/redirect/{idp_id}", "redirectUrl=https://example.org")),
    bare("POST", "/logout"),
    bare("POST", "/logout/all"),
    put("/devices/{device_id}", r#"{"display_name":"Phone"}"#),
    Example { body: Some(r#"{"auth":{"type":"m.login.password","password":"wrong","session":"x"}}"#), ..bare("DELETE", "/devices/{device_id}") },
    post("/delete_devices", r#"{"devices":["D"],"auth":{"type":"m.login.password","password":"wrong","session":"x"}}"#),
    bare("POST", "/user/{user_id}/openid/request_token"),
    open(get("/_synapse/admin/v1/register", "")),
    open(bare("POST", "/_synapse/admin/v1/register")),
    open(bare("PUT", "/_synapse/admin/v1/register")),
    post("/appservice/{appservice_id}/ping", r#"{"transaction_id":"a"}"#),
    put("/admin/lock/{user_id}", r#"{"locked":true}"#),
    put("/admin/suspend/{user_id}", r#"{"suspended":true}"#),
    // Rooms
    post("/createRoom", r#"{"name":"Room","topic":"Talk","preset":"private_chat","visibility":"private","room_alias_name":"alias-of-{user_id}","is_direct":true,"invite":["@bob:localhost"],"invite_3pid":[],"room_version":"12","creation_content":{"m.federate":true},"initial_state":[{"type":"m.room.guest_access","state_key":"","content":{"guest_access":"can_join"}}],"power_level_content_override":{"users_default":0,"events":{"m.room.name":50},"users":{"@bob:localhost":10}}}"#),
    post("/rooms/{room_id}/invite", r#"{"user_id":"@bob:localhost","reason":"please"}"#),
    post("/rooms/{room_id}/join", r#"{"reason":"hello"}"#),
    Example { query: "via=localhost&server_name=localhost", ..post("/join/{room_id_or_alias}", r#"{"reason":"hello"}"#) },
    Example { query: "via=localhost&server_name=localhost", ..post("/knock/{room_id_or_alias}", r#"{"reason":"hello"}"#) },
    post("/rooms/{room_id}/leave", r#"{"reason":"bye"}"#),
    bare("POST", "/rooms/{room_id}/forget"),
    post("/rooms/{room_id}/kick", r#"{"user_id":"@bob:localhost","reason":"out"}"#),
    post("/rooms/{room_id}/ban", r#"{"user_id":"@bob:localhost","reason":"out"}"#),
    post("/rooms/{room_id}/unban", r#"{"user_id":"@bob:localhost","reason":"in"}"#),
    post("/rooms/{room_id}/upgrade", r#"{"new_version":"12","additional_creators":["@bob:localhost"]}"#),
    post("/rooms/{room_id}/report", r#"{"reason":"spam"}"#),
    post("/rooms/{room_id}/report/{event_id}", r#"{"reason":"spam","score":-100}"#),
    post("/users/{user_id}/report", r#"{"reason":"spam"}"#),
    put("/directory/room/{room_alias}", r#"{"room_id":"{room_id}"}"#),
    open(get("/directory/room/{room_alias}", "")),
    put("/directory/list/room/{room_id}", r#"{"visibility":"public"}"#),
    open(get("/directory/list/room/{room_id}", "")),
    put("/directory/list/appservice/{network_id}/{room_id}", r#"{"visibility":"public"}"#),
    open(get("/publicRooms", "limit=5&since=x&server=localhost")),
    Example { query: "server=localhost", ..post("/publicRooms", r#"{"limit":5,"since":"x","filter":{"generic_search_term":"a","room_types":[null,"m.space"]},"include_all_networks":false,"third_party_instance_id":"x"}"#) },
    open(get("/room_summary/{room_id_or_alias}", "via=localhost")),
    open(get("/summary/{room_id_or_alias}", "via=localhost")),
    get("/rooms/{room_id}/hierarchy", "from=x&limit=5&max_depth=3&suggested_only=true"),
    get("/rooms/{room_id}/members", "at=t1_1&membership=join&not_membership=ban"),
    get("/rooms/{room_id}/state/{event_type}/{state_key}", "format=event"),
    // Messages
    put("/rooms/{room_id}/send/{event_type}/{txn_id}", r#"{"msgtype":"m.text","body":"hi","format":"org.matrix.custom.html","formatted_body":"<b>hi</b>","m.mentions":{"user_ids":["@bob:localhost"],"room":true},"m.relates_to":{"rel_type":"m.thread","event_id":"{event_id}","is_falling_back":true,"m.in_reply_to":{"event_id":"{event_id}"}}}"#),
    put("/rooms/{room_id}/state/{event_type}/{state_key}", r#"{"name":"Room"}"#),
    put("/rooms/{room_id}/redact/{event_id}/{txn_id}", r#"{"reason":"mistake"}"#),
    get("/rooms/{room_id}/messages", "from=t1_1&to=t0_0&dir=b&limit=5&filter=%7B%22types%22:[%22m.room.message%22]%7D"),
    get("/rooms/{room_id}/context/{event_id}", "limit=5&filter=%7B%22lazy_load_members%22:true%7D"),
    get("/rooms/{room_id}/relations/{event_id}", "from=t1_1&to=t0_0&dir=b&limit=5&recurse=true"),
    get("/rooms/{room_id}/relations/{event_id}/{rel_type}", "from=t1_1&to=t0_0&dir=f&limit=5&recurse=true"),
    get("/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}", "from=t1_1&dir=b&limit=5&recurse=true"),
    get("/rooms/{room_id}/threads", "from=t1_1&include=all&limit=5"),
    get("/rooms/{room_id}/timestamp_to_event", "ts=1&dir=f"),
    Example { query: "next_batch=x", ..post("/search", r#"{"search_categories":{"room_events":{"search_term":"hello","keys":["content.body"],"filter":{"limit":5,"rooms":["{room_id}"],"senders":["{user_id}"]},"order_by":"recent","event_context":{"before_limit":1,"after_limit":1,"include_profile":true},"include_state":true,"groupings":{"group_by":[{"key":"room_id"}]}}}}"#) },
    // Sync
    get("/sync", "timeout=0&since=s0_0_0&full_state=true&set_presence=online&filter=%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:5%7D%7D%7D&use_state_after=true"),
    get("/events", "timeout=0&from=s0_0_0&room_id={room_id}"),
    get("/rooms/{room_id}/initialSync", ""),
    get("/initialSync", "limit=5&archived=true"),
    Example { query: "pos=0&timeout=0", ..post("/sync", r#"{"conn_id":"a","txn_id":"b","lists":{"all":{"ranges":[[0,9]],"timeline_limit":5,"required_state":[["m.room.name",""]],"filters":{"is_dm":true}}},"room_subscriptions":{"{room_id}":{"timeline_limit":5,"required_state":[["*","*"]]}},"extensions":{"to_device":{"enabled":true,"limit":5,"since":"x"},"e2ee":{"enabled":true},"account_data":{"enabled":true,"rooms":["*"]},"receipts":{"enabled":true},"typing":{"enabled":true}}}"#) },
    get("/notifications", "from=x&limit=5&only=highlight"),
    post("/rooms/{room_id}/read_markers", r#"{"m.fully_read":"{event_id}","m.read":"{event_id}","m.read.private":"{event_id}"}"#),
    post("/rooms/{room_id}/receipt/{receipt_type}/{event_id}", r#"{"thread_id":"main"}"#),
    put("/rooms/{room_id}/typing/{user_id}", r#"{"typing":true,"timeout":5}"#),
    put("/presence/{user_id}/status", r#"{"presence":"online","status_msg":"here"}"#),
    // User data
    put("/user/{user_id}/account_data/{event_type}", r#"{"any":"thing"}"#),
    put("/user/{user_id}/rooms/{room_id}/account_data/{event_type}", r#"{"any":"thing"}"#),
    put("/user/{user_id}/rooms/{room_id}/tags/{tag}", r#"{"order":0.5}"#),
    post("/user/{user_id}/filter", r#"{"event_fields":["content.body"],"event_format":"client","presence":{"limit":5,"types":["m.*"],"senders":["@bob:localhost"]},"account_data":{"not_types":["*"]},"room":{"rooms":["{room_id}"],"not_rooms":["!x:localhost"],"include_leave":true,"timeline":{"limit":5,"types":["m.room.message"],"not_senders":["@bob:localhost"],"contains_url":true,"lazy_load_members":true,"unread_thread_notifications":true},"state":{"include_redundant_members":true},"ephemeral":{"limit":1},"account_data":{"limit":1}}}"#),
    open(get("/profile/{user_id}", "")),
    open(get("/profile/{user_id}/{field}", "")),
    open(get("/profile/{user_id}/displayname", "")),
    open(get("/profile/{user_id}/avatar_url", "")),
    put("/profile/{user_id}/{field}", r#"{"displayname":"Me"}"#),
    put("/profile/{user_id}/displayname", r#"{"displayname":"Me"}"#),
    put("/profile/{user_id}/avatar_url", r#"{"avatar_url":"mxc://localhost/abc"}"#),
    post("/user_directory/search", r#"{"search_term":"b","limit":5}"#),
    get("/mutual_rooms", "user_id=@bob:localhost&from=x"),
    Example { query: "before=m1&after=m2", ..put("/pushrules/global/{kind}/{rule_id}", r#"{"actions":["notify",{"set_tweak":"sound","value":"default"}],"conditions":[{"kind":"event_match","key":"content.body","pattern":"a"},{"kind":"room_member_count","is":">2"}],"pattern":"a"}"#) },
    put("/pushrules/global/{kind}/{rule_id}/enabled", r#"{"enabled":true}"#),
    put("/pushrules/global/{kind}/{rule_id}/actions", r#"{"actions":["notify"]}"#),
    post("/pushers/set", r#"{"app_id":"a","pushkey":"b","kind":"http","app_display_name":"A","device_display_name":"D","profile_tag":"p","lang":"en","append":false,"data":{"url":"https://example.org/_matrix/push/v1/notify","format":"event_id_only"}}"#),
    put("/sendToDevice/{event_type}/{txn_id}", r#"{"messages":{"@bob:localhost":{"*":{"a":1}}}}"#),
    // Keys
    post("/keys/upload", r#"{"device_keys":{"user_id":"{user_id}","device_id":"{device_id}","algorithms":["a"],"keys":{"ed25519:{device_id}":"x"},"signatures":{}},"one_time_keys":{"signed_curve25519:A":{"key":"x","signatures":{}}},"fallback_keys":{"signed_curve25519:B":{"key":"x","signatures":{},"fallback":true}}}"#),
    post("/keys/query", r#"{"device_keys":{"@bob:localhost":["D"]},"timeout":5}"#),
    post("/keys/claim", r#"{"one_time_keys":{"@bob:localhost":{"D":"signed_curve25519"}},"timeout":5}"#),
    put("/dehydrated_device", r#"{"device_id":"DRY","initial_device_display_name":"Dry","device_data":{"algorithm":"a"},"device_keys":{"user_id":"{user_id}","device_id":"DRY","algorithms":["a"],"keys":{"ed25519:DRY":"x"},"signatures":{}},"one_time_keys":{"signed_curve25519:A":{"key":"x","signatures":{}}},"fallback_keys":{"signed_curve25519:B":{"key":"x","signatures":{},"fallback":true}}}"#),
    get("/dehydrated_device", ""),
    bare("DELETE", "/dehydrated_device"),
    get("/dehydrated_device/{device_id}/events", "from=d1&limit=5"),
    post("/dehydrated_device/{device_id}/events", r#"{"next_batch":"d1"}"#),
    get("/keys/changes", "from=s0_0_0&to=s0_0_0"),
    post("/keys/device_signing/upload", r#"{"master_key":{"user_id":"{user_id}","usage":["master"],"keys":{"ed25519:x":"x"}},"auth":{"type":"m.login.password","password":"wrong"}}"#),
    post("/keys/signatures/upload", r#"{"{user_id}":{"D":{"user_id":"{user_id}","device_id":"D","algorithms":[],"keys":{},"signatures":{}}}}"#),
    post("/room_keys/version", r#"{"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{"public_key":"x","signatures":{}}}"#),
    put("/room_keys/version/{version}", r#"{"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{"public_key":"x","signatures":{}}}"#),
    Example { query: "version=1", ..put("/room_keys/keys", r#"{"rooms":{"{room_id}":{"sessions":{"s":{"first_message_index":1,"forwarded_count":0,"is_verified":true,"session_data":{"a":"b"}}}}}}"#) },
    Example { query: "version=1", ..put("/room_keys/keys/{room_id}", r#"{"sessions":{"s":{"first_message_index":1,"forwarded_count":0,"is_verified":true,"session_data":{"a":"b"}}}}"#) },
    Example { query: "version=1", ..put("/room_keys/keys/{room_id}/{session_id}", r#"{"first_message_index":1,"forwarded_count":0,"is_verified":true,"session_data":{"a":"b"}}"#) },
    // Media
    Example { query: "filename=a.txt", ..bare("POST", "/upload") },
    Example { query: "filename=a.txt", ..bare("PUT", "/upload/{server_name}/{media_id}") },
    bare("POST", "/media/v1/create"),
    get("/client/v1/media/download/{server_name}/{media_id}", "timeout_ms=1"),
    get("/client/v1/media/download/{server_name}/{media_id}/{filename}", "timeout_ms=1"),
    get("/client/v1/media/thumbnail/{server_name}/{media_id}", "width=32&height=32&method=crop&animated=true&timeout_ms=1"),
    get("/client/v1/media/preview_url", "url=https://example.org&ts=1"),
    open(get("/media/v3/download/{server_name}/{media_id}", "timeout_ms=1&allow_remote=true&allow_redirect=true")),
    open(get("/media/v3/download/{server_name}/{media_id}/{filename}", "timeout_ms=1&allow_remote=true")),
    open(get("/media/v3/thumbnail/{server_name}/{media_id}", "width=32&height=32&method=scale&animated=true&timeout_ms=1&allow_remote=true")),
    get("/media/v3/preview_url", "url=https://example.org&ts=1"),
    get("/thirdparty/location", "alias=x"),
    get("/thirdparty/user", "userid=x"),
];

/// The example for an endpoint. One that takes a body must have one.
pub fn find(method: &Method, endpoint: &Endpoint) -> &'static Example {
    let path = endpoint.paths.last().expect("an endpoint has a path");
    let fits =
        |example: &&Example| example.method == method.as_str() && path.ends_with(example.path);
    // The longest is the nearest.
    match EXAMPLES
        .iter()
        .filter(fits)
        .max_by_key(|example| example.path.len())
    {
        Some(example) => example,
        None if *method == Method::POST || *method == Method::PUT => {
            panic!("{method} {path} needs an example of a good body")
        }
        None => &PLAIN,
    }
}

/// A good argument for a path, or a value for a body.
pub fn argument(name: &str, person: &Person<'_>) -> String {
    // Each person has an alias, so that one endpoint does not free what another one has taken.
    if name == "room_alias" {
        return person.user.id.replacen('@', "%23", 1);
    }
    let value = match name {
        "room_id" | "room_id_or_alias" => &person.room,
        "user_id" => &person.user.id,
        "event_id" => &person.event,
        "device_id" => &person.user.device_id,
        "event_type" => "m.room.message",
        "rel_type" => "m.thread",
        "receipt_type" => "m.read",
        "server_name" => "localhost",
        "field" => "displayname",
        "kind" => "override",
        "tag" => "u.work",
        "txn_id" => "txn",
        "state_key" => "key",
        _ => "x",
    };
    value.to_owned()
}

/// Puts good values into the text of an example.
pub fn fill(text: &str, person: &Person<'_>) -> String {
    ["room_id", "user_id", "event_id", "device_id"]
        .iter()
        .fold(text.to_owned(), |text, name| {
            text.replace(&format!("{{{name}}}"), &argument(name, person))
        })
}
