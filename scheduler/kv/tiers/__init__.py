"""The tiers below the device: their books, and what is loaded, saved and copied from one to the next."""
