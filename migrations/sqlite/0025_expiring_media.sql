-- Media that nobody uploaded and that are kept for some time only: the images of previews.
CREATE INDEX media_expiring ON media (expires_ts) WHERE user_nid IS NULL AND sha256 IS NOT NULL;
