"""The demo's own models, each trained in half a minute at set-up."""
