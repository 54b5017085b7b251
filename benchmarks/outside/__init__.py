"""kpflow beside other libraries, in an environment of their own: see README.md."""
