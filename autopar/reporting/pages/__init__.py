"""One module per kind of page: from documents to a :class:`autopar.report.model.Page`."""
