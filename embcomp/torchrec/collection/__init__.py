"""The compressed collections: ids to rows, the look-up of rows, and what is combined from them."""
