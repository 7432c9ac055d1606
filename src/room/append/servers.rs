//! Which other servers are in the room: they hear of what happens in it.

use ruma::ServerName;

use super::step::Step;
use crate::{
    bus::Effect,
    error::Result,
    rooms::ServerCount,
    storage::{Membership, Position, servers},
};

impl Step<'_> {
    /// Counts a user of another server, who was `before` and is `now` something to the room. A server without joined
    /// users hears no more after the event that made it so: not when the last one has left, nor when the invite or
    /// knock of one who had not come yet is answered with a no.
    pub(super) fn count_server(
        &mut self,
        name: &ServerName,
        before: Option<Membership>,
        now: Membership,
        at: Position,
    ) -> Result<()> {
        use Membership::{Ban, Invite, Join, Knock, Leave};
        let known = self.server_count(name);
        let delta = i64::from(now == Join) - i64::from(before == Some(Join));
        let joined = (known.joined + delta).max(0);
        let is_refusal =
            matches!(before, Some(Invite | Knock)) && matches!(now, Leave | Ban) && joined == 0;
        if delta == 0 && !is_refusal {
            return Ok(());
        }
        let from_pos = if known.joined > 0 {
            known.from_pos
        } else {
            self.app.head()
        };
        let known = self.names.server(name);
        let server = known.or_else(|_| self.others.server(name))?;
        let write = servers::set(self.room.nid, server, joined, from_pos, at);
        self.change.write(write);
        self.change.effect(Effect::Server {
            room: self.room.clone(),
            name: name.to_owned(),
            server,
            joined,
            at,
        });
        let count = ServerCount { joined, from_pos };
        self.servers.insert(name.to_owned(), count);
        Ok(())
    }

    /// Where a server stands at the end of this change so far.
    pub(in crate::room) fn server_count(&self, name: &ServerName) -> ServerCount {
        let ours = self.servers.get(name);
        if let Some(count) = ours.or_else(|| self.head.servers.get(name)) {
            return *count;
        }
        let seen = self.room.seen();
        seen.servers.get(name).map_or(
            ServerCount {
                joined: 0,
                from_pos: 0,
            },
            |server| ServerCount {
                joined: server.joined,
                from_pos: server.from_pos,
            },
        )
    }
}
