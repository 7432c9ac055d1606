-- join_depth: of what is missing before somebody here joined the room, the depth of what follows it; NULL for other gaps.
-- It takes the place of before_join, which was lost when another event was found to follow the same missing one.

ALTER TABLE backward_extremity ADD COLUMN join_depth BIGINT;
UPDATE backward_extremity SET join_depth = depth WHERE before_join;
ALTER TABLE backward_extremity DROP COLUMN before_join;
