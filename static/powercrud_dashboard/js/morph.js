// The swap "pcrud-morph" of htmx: changes only what differs, so that what somebody reads or uses stays as it is: open
// sections, the scroll position of a code block, selected text, the focus, ticked boxes.
(() => {
  const ELEMENT = 1;

  const keyOf = (node) => (node.nodeType === ELEMENT ? node.id : "");

  // What the browser, the user or a script has changed since, and not the server.
  const isOwn = (element, name) =>
    (name === "open" && element.matches("details, dialog")) ||
    (name === "hidden" && element.matches("[data-pcrud-needs-script]"));

  const morphAttributes = (old, fresh) => {
    for (const { name, value } of [...fresh.attributes]) {
      if (old.getAttribute(name) !== value && !isOwn(old, name)) {
        old.setAttribute(name, value);
      }
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !isOwn(old, name)) {
        old.removeAttribute(name);
      }
    }
  };

  const isAlike = (old, fresh) => old.nodeName === fresh.nodeName && keyOf(old) === keyOf(fresh);

  const morph = (old, fresh) => {
    if (old.nodeType !== ELEMENT) {
      if (old.data !== fresh.data) {
        old.data = fresh.data;
      }
    } else if (!old.isEqualNode(fresh)) {
      morphAttributes(old, fresh);
      morphChildren(old, fresh);
    }
  };

  const morphChildren = (parent, freshParent) => {
    const fresh = [...freshParent.childNodes];
    const wanted = new Set(fresh.map(keyOf).filter(Boolean));
    const byKey = new Map([...parent.childNodes].map((node) => [keyOf(node), node]).filter(([key]) => key));
    let next = parent.firstChild;
    const drop = () => {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    };
    for (const node of fresh) {
      const key = keyOf(node);
      // What has a key and is not wanted any more must not keep the others from their places.
      while (next && keyOf(next) && !wanted.has(keyOf(next))) {
        drop();
      }
      const known = key ? byKey.get(key) : next;
      if (known && isAlike(known, node)) {
        if (known === next) {
          next = next.nextSibling;
        } else {
          parent.insertBefore(known, next);
        }
        morph(known, node);
      } else {
        parent.insertBefore(node, next);
      }
    }
    while (next) {
      drop();
    }
  };

  htmx.defineExtension("pcrud-morph", {
    isInlineSwap: (style) => style === "pcrud-morph",
    handleSwap: (style, target, fragment) => {
      const fresh = fragment.querySelector(`#${CSS.escape(target.id)}`);
      if (style !== "pcrud-morph" || !fresh) {
        return false;
      }
      morph(target, fresh);
      // htmx looks at its attributes again: it polls no longer if they are gone.
      return [target];
    },
  });
})();
