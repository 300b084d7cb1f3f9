// How AG Grid draws the first cell of a row: a link, whose text stays text.
var dagcomponentfuncs = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});

dagcomponentfuncs.Inside = function (props) {
  return window.React.createElement(
    "a",
    { href: props.data["address of the row"], className: "inside" },
    props.value
  );
};
